// SPDX-License-Identifier: Apache-2.0
/**
 * Flushes of a file with fdatasync(2). Those that are asked for at one time share one, and after one that failed all fail.
 *
 * Linux writes no page a second time that the disk has refused, and reports it once: the next fdatasync(2) succeeds although
 * the data is lost. A guest's driver tries a flush that failed again by itself, and would be told that all is well.
 */

import { fdatasync } from 'node:fs';
import { DevstateError } from '../../errors.js';
import { Errno, errnoText } from '../../native/index.js';

export class Flushing {
  readonly #path: string;
  /** Asked for each flush: it may change while none is under way. */
  readonly #fd: () => number;
  /** Called when a flush begins: it covers what has been written until now. */
  readonly #begins: () => void;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  #failure: number | undefined;

  constructor(path: string, fd: () => number, begins: () => void) {
    this.#path = path;
    this.#fd = fd;
    this.#begins = begins;
  }

  /** The errno of the flush that failed, if one has. A successor with the same open file is given it. */
  get failure(): number | undefined {
    return this.#failure;
  }

  /** Takes over what a predecessor has met. */
  adopt(failure: number | undefined): void {
    this.#failure = failure;
  }

  /** Settles when every write that has completed so far is on stable storage. @throws DevstateError DEVSTATE_E_SYSTEM */
  flush(): Promise<void> {
    if (this.#running === undefined) return this.#start();
    // The one under way may have begun before our caller's writes.
    this.#next ??= this.#running
      .catch(() => {})
      .then(() => {
        this.#next = undefined;
        return this.#start();
      });
    return this.#next;
  }

  #start(): Promise<void> {
    if (this.#failure !== undefined) return Promise.reject(this.#error(this.#failure));
    this.#begins();
    const done = new Promise<void>((resolve, reject) => {
      fdatasync(this.#fd(), (error) => {
        this.#running = undefined;
        if (error === null) return resolve();
        this.#failure = Math.abs(error.errno ?? Errno.EIO);
        reject(this.#error(this.#failure, error));
      });
    });
    this.#running = done;
    return done;
  }

  #error(errno: number, cause?: unknown): DevstateError {
    const lost = 'what was written since the last flush may be lost, and every flush fails from now on';
    const next = 'end the VM, check the image, and start this server again';
    const message = `cannot flush ${this.#path}: ${errnoText(errno)}; ${lost}: ${next}`;
    return new DevstateError('DEVSTATE_E_SYSTEM', message, { errno, cause });
  }
}
