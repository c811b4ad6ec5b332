// SPDX-License-Identifier: Apache-2.0
/** A process that an operation starts and that lives on when the operation's own has ended. */

import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { DevstateError } from '../errors.js';
import { whySystem } from '../native/index.js';
import { openForAppending } from './files/target.js';

/** Most of its output that is reported, bytes: the last of it. */
const MAX_WORDS = 600;

export class DetachedProcess {
  /** Undefined when the system would not even try. */
  readonly #process: ChildProcess | undefined;
  #ended: string | undefined;
  readonly exited: Promise<void>;

  /**
   * @param log file that its output is appended to; our stderr if undefined
   * @param environment more than ours
   * @throws DEVSTATE_E_OUTPUT when the log cannot be opened; then nothing has been started
   */
  constructor(
    command: readonly string[],
    log: string | undefined,
    environment: Readonly<Record<string, string>> = {},
  ) {
    const [program = '', ...args] = command;
    const output = log === undefined ? 2 : openLog(log);
    const before = log === undefined ? 0 : fstatSync(output).size;
    const started = start(program, args, {
      stdio: ['ignore', output, output],
      detached: true,
      env: { ...process.env, ...environment },
    });
    if (output !== 2) closeSync(output);
    if (started instanceof Error) {
      this.#ended = notStarted(started);
      this.exited = Promise.resolve();
      return;
    }
    this.#process = started;
    started.unref();
    this.exited = new Promise((resolve) => {
      const end = (why: string): void => {
        this.#ended ??= why;
        resolve();
      };
      started.once('error', (error) => end(notStarted(error)));
      started.once('exit', (code, signal) =>
        end(
          `ended with ${signal ?? `exit code ${code}`}${log === undefined ? OUTPUT : lastWords(log, before)}`,
        ),
      );
    });
  }

  get pid(): number | undefined {
    return this.#process?.pid;
  }

  /** How it ended, once it has: `ended with exit code 1: no such file`, or `…; its output says why`. */
  get ended(): string | undefined {
    return this.#ended;
  }

  /** Settles when it has ended. */
  async kill(): Promise<void> {
    if (this.#ended === undefined) this.#process?.kill('SIGKILL');
    await this.exited;
  }
}

function openLog(path: string): number {
  try {
    return openForAppending(path);
  } catch (cause) {
    const message = `cannot append to ${path}: ${whySystem(cause)}; nothing was started`;
    throw new DevstateError('DEVSTATE_E_OUTPUT', message, { cause });
  }
}

/** Node.js tells of some failures by an event, and throws others: a name that is empty, or that leads through a file. */
function start(program: string, args: readonly string[], options: SpawnOptions): ChildProcess | Error {
  try {
    return spawn(program, args, options);
  } catch (error) {
    if (error instanceof Error) return error;
    throw error;
  }
}

function notStarted({ message }: Error): string {
  return `cannot be started: ${message}; name a program that this user may execute`;
}

const OUTPUT = '; its output says why';

/** What is in a log since it had `from` bytes, or where to look. */
function lastWords(log: string, from: number): string {
  let words = '';
  try {
    const fd = openSync(log, 'r');
    try {
      const { size } = fstatSync(fd);
      const start = Math.max(from, size - MAX_WORDS);
      const bytes = Buffer.alloc(Math.max(0, size - start));
      words = bytes.toString('utf8', 0, readSync(fd, bytes, 0, bytes.length, start));
      // The first line may have been cut.
      if (start > from) words = words.slice(words.indexOf('\n') + 1);
    } finally {
      closeSync(fd);
    }
  } catch {
    // The log was removed.
  }
  const lines = words.split('\n').map(wordsOfLine);
  const told = lines.filter((line) => line !== '').join('; ');
  return told === '' ? `; its output is in ${log}` : `: ${told}`;
}

/** A line of a log in JSON has its words in `msg`. */
function wordsOfLine(line: string): string {
  if (!line.startsWith('{')) return line.trim();
  try {
    const { msg } = JSON.parse(line) as { msg?: unknown };
    return typeof msg === 'string' ? msg : line;
  } catch {
    return line;
  }
}
