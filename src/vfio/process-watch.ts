// SPDX-License-Identifier: Apache-2.0
/** Tells when a process ends, by its pidfd. */

import { isKnown, isRunning, type ProcessIdentity } from '../handoff/index.js';
import { checkObject, Errno, native, PollEvent, type Poller, systemError } from '../native/index.js';
import { Fd } from '../transport/index.js';

export class ProcessWatch {
  readonly process: ProcessIdentity;
  #fd: Fd | undefined;
  #poller: Poller | undefined;

  /**
   * @param ended is called once, in a later turn of the loop, when the process has ended; at once if it has already. Never
   * for a process of another pid namespace: its end cannot be seen from here
   */
  constructor(process: ProcessIdentity, ended: () => void) {
    this.process = process;
    if (!isKnown(process)) return;
    const number = native.pidfdOpen(process.pid);
    if (number < 0 && number !== -Errno.ESRCH) throw systemError(`watch process ${process.pid}`, -number);
    this.#fd = number < 0 ? undefined : new Fd(number);
    // The pid may have become another's before its file was opened; from here on it cannot.
    if (this.#fd === undefined || !isRunning(process)) {
      this.close();
      setImmediate(ended);
      return;
    }
    const watching = native.createPoller(this.#fd.number, () => {
      this.close();
      ended();
    });
    this.#poller = checkObject(watching, `watch process ${process.pid}`);
    this.#poller.start(PollEvent.readable);
    this.#poller.unref();
  }

  close(): void {
    this.#poller?.close();
    this.#fd?.close();
    this.#poller = undefined;
    this.#fd = undefined;
  }
}
