// SPDX-License-Identifier: Apache-2.0
/** The manager's end of `operator.ts`: processes that are started, told what to do, and ended. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { DevstateError, type ErrorCode } from '../../../src/errors.js';

const PROGRAM = fileURLToPath(new URL('./operator.js', import.meta.url));

interface Reply {
  readonly id?: number;
  readonly value?: unknown;
  readonly error?: { code: ErrorCode; message: string };
  readonly log?: string;
}

export class OperatorProcess {
  static #count = 0;
  readonly path: string;
  readonly process: ChildProcess;
  /** What its station told. */
  readonly log: string[] = [];
  readonly exited: Promise<string>;
  readonly #waiting = new Map<number, (reply: Reply) => void>();
  readonly #watchers = new Set<() => void>();
  #next = 0;

  /** @param options.uid user that it runs as @param options.lockedKiB its RLIMIT_MEMLOCK; else as this process */
  constructor(options: { uid?: number; lockedKiB?: number } = {}) {
    const { uid, lockedKiB } = options;
    this.path = `/tmp/operator-${process.pid}-${++OperatorProcess.#count}`;
    this.process = fork(PROGRAM, [this.path], {
      ...(uid === undefined ? {} : { uid, gid: uid }),
      ...(lockedKiB === undefined
        ? {}
        : { execPath: '/bin/sh', execArgv: ['-c', `ulimit -l ${lockedKiB}; exec node "$0" "$@"`] }),
    });
    this.process.on('message', (reply: Reply) => {
      if (reply.log !== undefined) this.log.push(reply.log);
      if (reply.id !== undefined) this.#waiting.get(reply.id)?.(reply);
      for (const watch of this.#watchers) watch();
    });
    this.exited = once(this.process, 'exit').then(([code, signal]) => {
      const how = String(signal ?? code);
      for (const answer of this.#waiting.values())
        answer({ error: { code: 'DEVSTATE_E_CONNECTION_CLOSED', message: `the operator ended (${how})` } });
      return how;
    });
  }

  get pid(): number {
    return this.process.pid ?? 0;
  }

  /** Has a command of `operator.ts` carried out. @throws what it threw there */
  ask<T = unknown>(command: string, argument?: unknown): Promise<T> {
    const id = this.#next++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, ({ value, error }) => {
        this.#waiting.delete(id);
        if (error === undefined) resolve(value as T);
        else reject(new DevstateError(error.code, error.message));
      });
      this.process.send({ id, command, argument });
    });
  }

  /** Settles when the station has told something like `pattern`. */
  async says(pattern: RegExp): Promise<void> {
    while (!this.log.some((line) => pattern.test(line)))
      await new Promise<void>((resolve) => {
        const watch = (): void => {
          this.#watchers.delete(watch);
          resolve();
        };
        this.#watchers.add(watch);
      });
  }

  async end(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    this.process.kill(signal);
    await this.exited;
  }
}

type Several<Length extends number> = Length extends 1
  ? [OperatorProcess]
  : Length extends 2
    ? [OperatorProcess, OperatorProcess]
    : [OperatorProcess, OperatorProcess, OperatorProcess];

/** Starts operators, which do not listen yet. */
export function start<Length extends 1 | 2 | 3>(
  count: Length,
  options: ConstructorParameters<typeof OperatorProcess>[0] = {},
): Several<Length> {
  return Array.from({ length: count }, () => new OperatorProcess(options)) as Several<Length>;
}
