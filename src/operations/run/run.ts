// SPDX-License-Identifier: Apache-2.0
/**
 * Runs a device server, keeps what it has to continue with, and starts it anew when it crashes: what systemd does for a unit
 * with `Restart=on-failure` and an fd store, in the same protocol, on hosts without systemd.
 */

import { closeSync, constants, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { DevstateError, ExitCode } from '../../errors.js';
import { FdHolder } from '../../fd-store/index.js';
import { native } from '../../native/index.js';
import { makeScratchFolder } from '../scratch-folder.js';
import { type Ended, ServiceProcess } from './service-process.js';

export interface RunOptions {
  readonly command: readonly string[];
  readonly restart: 'on-crash' | 'never';
  /** Crashes in a row after which it is given up. */
  readonly maxCrashes: number;
  /** Most fds that are kept. */
  readonly maxFds: number;
  /** Aborted to have the server end. */
  readonly stop: AbortSignal;
  readonly progress?: (event: RunEvent) => void;
  /** Called with what restarts the server as if it had crashed. */
  readonly onStarted?: (restart: () => void) => void;
}

export type RunEvent =
  | { readonly event: 'serving'; readonly pid: number; readonly restarts: number; readonly ms: number }
  | { readonly event: 'crashed'; readonly pid: number; readonly how: string; readonly fds: number }
  | { readonly event: 'ended'; readonly how: string };

export interface RunResult {
  /** Exit code of the server, when it ended by itself. */
  readonly exitCode: number;
  readonly restarts: number;
}

/** A server that served for so long, ms, has not crashed "in a row". */
const STEADY_MS = 1000;

/** @throws DevstateError DEVSTATE_E_CRASHED, DEVSTATE_E_OUTPUT, DEVSTATE_E_USAGE, DEVSTATE_E_SYSTEM */
export async function run(options: RunOptions): Promise<RunResult> {
  if (options.command.length === 0)
    throw new DevstateError('DEVSTATE_E_USAGE', "the server's command line is missing; give it after --");
  const directory = makeScratchFolder('run');
  const remove = (): void => rmSync(directory, { recursive: true, force: true });
  try {
    return await new Supervision(options, join(directory, 'notify'), remove).run();
  } finally {
    remove();
  }
}

/** Opens a file for nothing but its place in the file system. Node.js has no name for it. */
const O_PATH = 0o10000000;

/**
 * Another path to the socket, for as long as this process lives: the one in the directory is of no use any more then, so
 * that nothing is left behind by a supervisor that is killed. Undefined where /proc does not lead to it.
 */
function pathOfProcess(path: string): string | undefined {
  const fd = openSync(path, O_PATH | constants.O_NOFOLLOW);
  const other = `/proc/${process.pid}/fd/${fd}`;
  const probe = native.datagramConnect(other);
  if (probe >= 0) {
    native.close(probe);
    return other;
  }
  closeSync(fd);
  return undefined;
}

class Supervision {
  readonly #options: RunOptions;
  readonly #path: string;
  readonly #holder: FdHolder;
  #service: ServiceProcess | undefined;
  #restarts = 0;
  #crashesInARow = 0;
  /** Since when the server did not serve, and since when it does. */
  #waitingSince = performance.now();
  #servingSince: number | undefined;
  #everServed = false;
  /** The server is to be replaced by itself. */
  #told = false;

  /** @param remove removes `path` and its directory */
  constructor(options: RunOptions, path: string, remove: () => void) {
    this.#options = options;
    this.#holder = new FdHolder(path, options.maxFds, () => this.#ready());
    const other = pathOfProcess(path);
    this.#path = other ?? path;
    if (other !== undefined) remove();
  }

  async run(): Promise<RunResult> {
    const { stop, onStarted } = this.#options;
    const end = (): void => this.#service?.kill('SIGTERM');
    stop.addEventListener('abort', end);
    onStarted?.(() => {
      this.#told = true;
      this.#service?.kill('SIGKILL');
    });
    try {
      for (;;) {
        const ended = await this.#serveOnce();
        if (stop.aborted || !this.#isToBeRestarted(ended)) return this.#result(ended);
        this.#restarts++;
      }
    } finally {
      stop.removeEventListener('abort', end);
      this.#holder.close();
    }
  }

  async #serveOnce(): Promise<Ended> {
    const { command, maxFds } = this.#options;
    this.#servingSince = undefined;
    this.#service = new ServiceProcess(command, { notifyPath: this.#path, maxFds, kept: this.#holder.kept });
    if (this.#options.stop.aborted) this.#service.kill('SIGTERM');
    const ended = await this.#service.ended;
    this.#waitingSince = performance.now();
    // What it sent before it ended is there by now, and nothing follows.
    this.#holder.drain();
    return ended;
  }

  #ready(): void {
    const { pid } = this.#service ?? {};
    if (pid === undefined) return;
    this.#servingSince = performance.now();
    this.#everServed = true;
    const ms = this.#servingSince - this.#waitingSince;
    this.#options.progress?.({ event: 'serving', pid, restarts: this.#restarts, ms });
  }

  /** @throws DEVSTATE_E_CRASHED when there is no point in trying again */
  #isToBeRestarted({ code, how, pid }: Ended): boolean {
    const crashed = code !== ExitCode.done && code !== ExitCode.usage;
    // Nothing was ever served, so nothing is lost: the one who started it gets the error.
    if (!crashed || this.#options.restart === 'never' || !this.#everServed) {
      this.#options.progress?.({ event: 'ended', how });
      return false;
    }
    this.#options.progress?.({ event: 'crashed', pid: pid ?? 0, how, fds: this.#holder.kept.length });
    const steady = this.#servingSince !== undefined && this.#waitingSince - this.#servingSince >= STEADY_MS;
    this.#crashesInARow = this.#told || steady ? 0 : this.#crashesInARow + 1;
    this.#told = false;
    if (this.#crashesInARow <= this.#options.maxCrashes) return true;
    throw new DevstateError(
      'DEVSTATE_E_CRASHED',
      `the server crashed ${this.#crashesInARow} times in a row, the last time it ${how}: it is not started again; its output says why`,
    );
  }

  #result({ code, how }: Ended): RunResult {
    if (code !== undefined) return { exitCode: code, restarts: this.#restarts };
    if (this.#options.stop.aborted) return { exitCode: ExitCode.done, restarts: this.#restarts };
    throw new DevstateError('DEVSTATE_E_CRASHED', `the server ${how}; its output says why`);
  }
}
