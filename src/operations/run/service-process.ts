// SPDX-License-Identifier: Apache-2.0
/** One process of a service, with the fds that were kept, as sd_listen_fds(3) and sd_notify(3) have it. */

import { type ChildProcess, spawn } from 'node:child_process';
import type { KeptFd } from '../../fd-store/index.js';

export interface ServiceSettings {
  readonly notifyPath: string;
  readonly maxFds: number;
  readonly kept: readonly KeptFd[];
}

export interface Ended {
  readonly pid: number | undefined;
  /** Undefined when it was killed by a signal. */
  readonly code: number | undefined;
  /** `ended with exit code 1`. */
  readonly how: string;
}

/** LISTEN_PID is to be the server's own, which is not known before it is there. */
const SCRIPT = 'LISTEN_PID=$$; export LISTEN_PID; exec "$@"';

export class ServiceProcess {
  readonly #process: ChildProcess;
  /** Settles when the process is gone with all of its threads: nothing that it has begun is still under way. */
  readonly ended: Promise<Ended>;

  constructor(command: readonly string[], { notifyPath, maxFds, kept }: ServiceSettings) {
    this.#process = spawn('/bin/sh', ['-c', SCRIPT, 'sh', ...command], {
      stdio: ['inherit', 'inherit', 'inherit', ...kept.map(({ fd }) => fd.number)],
      env: {
        ...process.env,
        NOTIFY_SOCKET: notifyPath,
        FDSTORE: String(maxFds),
        LISTEN_FDS: String(kept.length),
        LISTEN_FDNAMES: kept.map(({ name }) => name).join(':'),
      },
    });
    const { pid } = this.#process;
    this.ended = new Promise((resolve) => {
      this.#process.once('error', (error) =>
        resolve({ pid, code: 1, how: `could not be started: ${error.message}` }),
      );
      this.#process.once('exit', (code, signal) =>
        resolve({ pid, code: code ?? undefined, how: `ended with ${signal ?? `exit code ${code}`}` }),
      );
    });
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  kill(signal: NodeJS.Signals): void {
    this.#process.kill(signal);
  }
}
