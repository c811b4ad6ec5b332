// SPDX-License-Identifier: Apache-2.0
/** A process that an operation starts and that lives on when the operation's own has ended. */

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync } from 'node:fs';

export class DetachedProcess {
  readonly #process: ChildProcess;
  #ended: string | undefined;
  readonly exited: Promise<void>;

  /**
   * @param log file that its output is appended to; our stderr if undefined
   * @param environment more than ours
   */
  constructor(
    command: readonly string[],
    log: string | undefined,
    environment: Readonly<Record<string, string>> = {},
  ) {
    const [program = '', ...args] = command;
    const output = log === undefined ? 2 : openSync(log, 'a', 0o600);
    this.#process = spawn(program, args, {
      stdio: ['ignore', output, output],
      detached: true,
      env: { ...process.env, ...environment },
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

  /** How it ended, once it has: `ended with exit code 1`. */
  get ended(): string | undefined {
    return this.#ended;
  }

  /** Settles when it has ended. */
  async kill(): Promise<void> {
    if (this.#ended === undefined) this.#process.kill('SIGKILL');
    await this.exited;
  }
}
