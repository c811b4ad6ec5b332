// SPDX-License-Identifier: Apache-2.0
/** What commands print: data on stdout, everything else on stderr. */

import { asDevstateError, DevstateError, type ExitCode } from '../errors.js';
import { printable } from '../formats/index.js';
import { whySystem } from '../native/index.js';
import { settleStderr, writeStderr } from './stderr.js';

let guarded = false;

/** Has a failure of stdout end the process with an error that says so, when its work is done. */
export function guardStdout(): void {
  if (guarded) return;
  guarded = true;
  process.stdout.once('error', (cause: NodeJS.ErrnoException) => {
    const error = new DevstateError('DEVSTATE_E_OUTPUT', `cannot write to stdout: ${cause.message}`, {
      cause,
    });
    // Unless the command notices it too, and says so.
    process.once('exit', () => {
      if (cause.code !== 'EPIPE') process.exitCode ||= printError(error);
    });
  });
  process.stdout.on('error', () => {});
}

/** Writes to stdout, after what was written to stderr: both may be one terminal. */
export function writeStdout(text: string): void {
  guardStdout();
  settleStderr();
  process.stdout.write(text);
}

/** One JSON object, the whole output of a command with `-o json`. */
export function printJson(value: unknown): void {
  writeStdout(`${JSON.stringify(value, null, 2)}\n`);
}

const COLUMNS = 80;

/** `Key: value` lines, values in a column and broken between words; further lines of one key have an empty key. */
export function printColumns(rows: readonly (readonly [key: string, value: string])[]): void {
  const width = Math.max(...rows.map(([key]) => key.length)) + 1;
  for (const [key, value] of rows) {
    const [first = '', ...others] = wrap(value, COLUMNS - width - 2);
    writeStdout(`${`${key}${key === '' ? '' : ':'}`.padEnd(width)}  ${first}`.trimEnd());
    for (const line of others) writeStdout(`\n${' '.repeat(width + 2)}${line}`);
    writeStdout('\n');
  }
}

/** Lines that fit the screen, the first one behind `prefix`, the others as far in. */
export function printWrapped(text: string, prefix: string): void {
  const lines = wrap(text, COLUMNS - prefix.length);
  for (const [index, line] of lines.entries()) {
    writeStdout(`${index === 0 ? prefix : ' '.repeat(prefix.length)}${line}\n`);
  }
}

/** Lines of at most `columns`, unless a word is longer. */
function wrap(text: string, columns: number): string[] {
  const lines: string[] = [];
  // What a peer or a file says must not move the cursor.
  for (const word of printable(text).split(' ')) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= columns)
      lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

/** Says on stderr what went wrong. @returns the exit code for it */
export function printError(error: unknown): ExitCode {
  const { code, message, exitCode } = ofSystem(error) ?? asDevstateError(error);
  // It may quote what a file or a peer says.
  const lines = message.split('\n').map(printable);
  writeStderr(`error: ${lines.join('\n')} [${code}]\n`);
  if (code === 'DEVSTATE_E_INTERNAL' && error instanceof Error && error.stack !== undefined) {
    const debug = process.env.DEVSTATE_DEBUG !== undefined;
    const advice = 'this is a fault of devstate; set DEVSTATE_DEBUG=1 to see where, and report it';
    writeStderr(debug ? `${error.stack}\n` : `${advice}\n`);
  }
  return exitCode;
}

/** A system call that failed where it was not expected to: not a fault of ours. */
function ofSystem(error: unknown): DevstateError | undefined {
  if (!(error instanceof Error) || error instanceof DevstateError) return undefined;
  const { syscall, path, errno } = error as NodeJS.ErrnoException;
  if (syscall === undefined || errno === undefined) return undefined;
  const what = path === undefined ? syscall : `${syscall} ${path}`;
  return new DevstateError('DEVSTATE_E_SYSTEM', `cannot ${what}: ${whySystem(error)}`, { cause: error });
}

/** Says on stderr what happens although it may not be what was meant. */
export function printWarning(message: string): void {
  writeStderr(`warning: ${printable(message)}\n`);
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** `1536` → `1.5 KiB`. */
export function formatBytes(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${UNITS[unit]}`;
}

/** `12.3 ms`, `4.56 s`. */
export function formatMs(ms: number): string {
  return ms < 1000 ? `${ms.toFixed(1)} ms` : `${(ms / 1000).toFixed(2)} s`;
}
