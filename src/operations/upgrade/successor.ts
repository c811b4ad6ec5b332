// SPDX-License-Identifier: Apache-2.0
/** The successor as a process: started, waited for, ended if it is not to be. */

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DevstateError } from '../../errors.js';
import { TAKEOVER_VARIABLE, takeoverPaths } from '../../handoff/index.js';
import { delay } from '../waiting.js';

/** How often to look whether it listens. */
const RETRY_MS = 5;

export class Successor {
  readonly #process: ChildProcess;
  readonly #directory: string;
  /** Why it ended, once it has. */
  #ended: string | undefined;
  readonly exited: Promise<void>;

  /** It lives on when we end. @param log file that its output is appended to; our stderr if undefined */
  constructor(command: readonly string[], log: string | undefined) {
    const [program, ...args] = command;
    if (program === undefined)
      throw new DevstateError(
        'DEVSTATE_E_USAGE',
        "the successor's command line is missing; give it after --",
      );
    // Only this user may enter it.
    this.#directory = mkdtempSync(join(tmpdir(), 'devstate-upgrade-'));
    const output = log === undefined ? 2 : openSync(log, 'a', 0o600);
    this.#process = spawn(program, args, {
      stdio: ['ignore', output, output],
      detached: true,
      env: { ...process.env, [TAKEOVER_VARIABLE]: this.#directory },
    });
    this.#process.unref();
    if (output !== 2) closeSync(output);
    this.exited = new Promise((resolve) => {
      const end = (why: string): void => {
        this.#ended ??= why;
        resolve();
      };
      this.#process.once('error', (error) => end(`cannot be started: ${error.message}`));
      this.#process.once('exit', (code, signal) => end(`ended with ${signal ?? `exit code ${code}`}`));
    });
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  get hasEnded(): boolean {
    return this.#ended !== undefined;
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
      if (this.#ended !== undefined)
        throw new DevstateError('DEVSTATE_E_HANDOFF', `the successor ${this.#ended}; its output says why`);
      try {
        return await open(path);
      } catch (error) {
        if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_CONNECT') throw error;
      }
      await Promise.race([delay(RETRY_MS), this.exited]);
    }
  }

  /** It is not to be. Whatever it does, it has nothing that is not the old server's as well. */
  kill(): void {
    if (this.#ended === undefined) this.#process.kill('SIGKILL');
  }

  /** Its sockets for the takeover are of no use any more. */
  cleanUp(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
