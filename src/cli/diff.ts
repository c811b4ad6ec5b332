// SPDX-License-Identifier: Apache-2.0
/** `devstate diff`: in what two saved states differ. */

import { Command } from 'commander';
import { ExitCode } from '../errors.js';
import { type Difference, diffFiles, withInput } from '../operations/index.js';
import { outputOption } from './options.js';
import { printJson, printWrapped } from './output.js';

export function diffCommand(): Command {
  return new Command('diff')
    .description('show in what two saved states differ, field by field; exit code 0 if in nothing, else 1')
    .argument('<a>', 'a saved state')
    .argument('<b>', 'another one, perhaps of another format')
    .addOption(outputOption())
    .action(async (a: string, b: string, { output }: { output: 'text' | 'json' }) => {
      const result = await withInput(a, (left) => withInput(b, (right) => diffFiles(left, right)));
      if (!result.same) process.exitCode = ExitCode.failed;
      if (output === 'json') return printJson(result);
      for (const difference of result.differences) printDifference(difference);
      for (const remark of result.remarks) process.stderr.write(`${remark}\n`);
      const count = result.differences.length;
      const verdict = count === 0 ? 'no difference' : count === 1 ? '1 difference' : `${count} differences`;
      process.stdout.write(`${verdict}, compared as ${result.format}\n`);
    });
}

function printDifference({ path, a, b }: Difference): void {
  const text = (value: Difference['a']): string => (value === null ? '(not there)' : JSON.stringify(value));
  printWrapped(path, '');
  printWrapped(text(a), '  - ');
  printWrapped(text(b), '  + ');
}
