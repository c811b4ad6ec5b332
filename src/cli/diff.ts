// SPDX-License-Identifier: Apache-2.0
/** `devstate diff`: in what two saved states differ. */

import { Command } from 'commander';
import { DevstateError, ExitCode } from '../errors.js';
import { printable } from '../formats/index.js';
import { type Difference, diffFiles, withRereadable } from '../operations/index.js';
import { outputOption } from './options.js';
import { printJson, printWrapped, writeStdout } from './output.js';
import { writeStderr } from './stderr.js';

/** Characters shown of a long value, and of those before what is different in it. */
const VALUE_LENGTH = 48;
const BEFORE = 8;

export function diffCommand(): Command {
  return new Command('diff')
    .description('show in what two saved states differ, field by field; exit code 0 if in nothing, else 1')
    .argument('<a>', 'a saved state')
    .argument('<b>', 'another one, perhaps of another format')
    .addOption(outputOption())
    .action(async (a: string, b: string, { output }: { output: 'text' | 'json' }) => {
      if (a === '-' && b === '-')
        throw new DevstateError('DEVSTATE_E_USAGE', 'only one of the two can be stdin');
      const result = await withRereadable(a, (left) => withRereadable(b, (right) => diffFiles(left, right)));
      if (!result.same) process.exitCode = ExitCode.failed;
      if (output === 'json') return printJson(result);
      for (const difference of result.differences) printDifference(difference);
      for (const remark of result.remarks) writeStderr(`${remark}\n`);
      const count = result.differences.length;
      const verdict = count === 0 ? 'no difference' : count === 1 ? '1 difference' : `${count} differences`;
      writeStdout(`${verdict}, compared as ${result.format}\n`);
    });
}

function printDifference({ path, a, b }: Difference): void {
  const text = (value: Difference['a']): string =>
    value === null ? '(not there)' : printable(JSON.stringify(value));
  const [left, right] = [text(a), text(b)];
  printWrapped(printable(path), '');
  const from = Math.max(0, firstDifference(left, right) - BEFORE);
  for (const [sign, value] of [
    ['-', left],
    ['+', right],
  ] as const) {
    printWrapped(excerpt(value, from), `  ${sign} `);
  }
}

/** Index of the first character that is not the same. */
function firstDifference(a: string, b: string): number {
  let at = 0;
  while (at < a.length && a[at] === b[at]) at++;
  return at;
}

/** A value that does not fit on its line, around what is different in it. */
function excerpt(text: string, from: number): string {
  if (text.length <= VALUE_LENGTH) return text;
  const start = Math.min(from, text.length - VALUE_LENGTH);
  const part = text.slice(start, start + VALUE_LENGTH);
  const [before, after] = [start, text.length - start - part.length];
  return `${before > 0 ? `${before} characters … ` : ''}${part}${after > 0 ? ` … ${after} more` : ''}`;
}
