// SPDX-License-Identifier: Apache-2.0
/** The command under test, as a user runs it: `devstate` in a process of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { watchedEnvironment } from '../../support/loop-watch.js';
import { MAIN } from '../../support/main.js';

const STAND_AT_HOOK = new URL('./stand-at-hook.js', import.meta.url).href;

/** `devstate` with arguments as a command line, for a command that starts it. */
export function devstateCommand(...args: string[]): string[] {
  return [process.execPath, MAIN, ...args];
}

/** One run of `devstate`. */
export class Devstate {
  readonly process: ChildProcess;
  stdout = '';
  stderr = '';
  readonly #exited: Promise<number>;
  readonly #watchers = new Set<() => void>();

  /**
   * @param under a command that runs the one after it
   * @param standsAt a phase of which it reports, and then stops itself
   */
  constructor(args: readonly string[], under: readonly string[] = [], standsAt?: string) {
    const [program = '', ...rest] = [...under, ...devstateCommand(...args)];
    const env = watchedEnvironment();
    if (standsAt !== undefined)
      Object.assign(env, {
        STAND_AT: standsAt,
        NODE_OPTIONS: `${env.NODE_OPTIONS} --import=${STAND_AT_HOOK}`,
      });
    this.process = spawn(program, rest, { stdio: ['ignore', 'pipe', 'pipe'], env });
    this.process.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.stdout += text;
    });
    this.process.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text;
      for (const watch of this.#watchers) watch();
    });
    this.#exited = once(this.process, 'close').then(([code, signal]) => {
      for (const watch of this.#watchers) watch();
      return code ?? 128 + (signal === 'SIGKILL' ? 9 : 15);
    });
  }

  /** Exit code, once it has ended and all its output is here. */
  get exited(): Promise<number> {
    return this.#exited;
  }

  get hasEnded(): boolean {
    return this.process.exitCode !== null || this.process.signalCode !== null;
  }

  /** Resolves when stderr has `pattern`; rejects when the process ends without. */
  saysOnStderr(pattern: RegExp): Promise<void> {
    return new Promise((resolve, reject) => {
      const watch = (): void => {
        if (pattern.test(this.stderr)) resolve();
        else if (this.hasEnded) reject(new Error(`devstate ended without saying ${pattern}: ${this.stderr}`));
        else return;
        this.#watchers.delete(watch);
      };
      this.#watchers.add(watch);
      watch();
    });
  }

  /** Resolves when it stands still, by SIGSTOP. */
  async stands(): Promise<void> {
    while (!/^State:\tT/m.test(await readFile(`/proc/${this.process.pid}/status`, 'latin1'))) await delay(10);
  }

  signal(signal: NodeJS.Signals): void {
    this.process.kill(signal);
  }

  /** Ends it, by SIGKILL unless told otherwise, and waits for its end. May be called again. */
  async end(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    if (!this.hasEnded) this.process.kill(signal);
    await this.#exited;
  }
}

/** Runs a command to its end. */
export async function devstate(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const run = new Devstate(args);
  const code = await run.exited;
  return { code, stdout: run.stdout, stderr: run.stderr };
}

/** A `devstate serve nvme` that listens. */
export async function serveNvme(options: {
  socket: string;
  migrationSocket: string;
  image: string;
  args?: readonly string[];
  /** Options of `devstate run`, to run it under that. */
  supervisor?: readonly string[] | undefined;
}): Promise<Devstate> {
  const { socket, migrationSocket, image, args = [], supervisor } = options;
  const server = new Devstate([
    ...(supervisor === undefined ? [] : ['run', ...supervisor, '--', ...devstateCommand()]),
    ...['serve', 'nvme', '--socket', socket, '--migration-socket', migrationSocket, '--image', image],
    ...args,
  ]);
  await server.saysOnStderr(/"msg":"serving /);
  return server;
}
