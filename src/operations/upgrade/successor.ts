// SPDX-License-Identifier: Apache-2.0
/** The successor as a process: started, waited for, ended if it is not to be. */

import { rmSync } from 'node:fs';
import { DevstateError } from '../../errors.js';
import { TAKEOVER_VARIABLE, takeoverPaths } from '../../handoff/index.js';
import { DetachedProcess } from '../detached-process.js';
import { makeScratchFolder } from '../scratch-folder.js';
import { delay } from '../waiting.js';

/** How often to look whether it listens. */
const RETRY_MS = 5;

export class Successor {
  readonly #process: DetachedProcess;
  readonly #directory: string;

  /**
   * It lives on when we end.
   * @param log file that its output is appended to; our stderr if undefined
   * @throws DEVSTATE_E_OUTPUT when the log or the directory cannot be made
   */
  constructor(command: readonly string[], log: string | undefined) {
    if (command.length === 0) {
      const message = "the successor's command line is missing; give it after --";
      throw new DevstateError('DEVSTATE_E_USAGE', message);
    }
    // Only this user may enter it.
    this.#directory = makeScratchFolder('upgrade');
    try {
      this.#process = new DetachedProcess(command, log, { [TAKEOVER_VARIABLE]: this.#directory });
    } catch (error) {
      this.cleanUp();
      throw error;
    }
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  get hasEnded(): boolean {
    return this.#process.ended !== undefined;
  }

  /** Where the old server finds it. */
  get socket(): string {
    return takeoverPaths(this.#directory).handoff;
  }

  /** Settles when it listens. @throws DEVSTATE_E_HANDOFF when it ends first, the signal's reason when that aborts */
  async connect<Client>(open: (path: string) => Promise<Client>, signal: AbortSignal): Promise<Client> {
    const path = takeoverPaths(this.#directory).manager;
    for (;;) {
      signal.throwIfAborted();
      const { ended } = this.#process;
      if (ended !== undefined) throw new DevstateError('DEVSTATE_E_HANDOFF', `the successor ${ended}`);
      try {
        return await open(path);
      } catch (error) {
        if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_CONNECT') throw error;
      }
      await Promise.race([delay(RETRY_MS), this.#process.exited]);
    }
  }

  /** It is not to be. Whatever it does, it has nothing that is not the old server's as well. */
  kill(): void {
    void this.#process.kill();
  }

  /** Its sockets for the takeover are of no use any more. */
  cleanUp(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
