// SPDX-License-Identifier: Apache-2.0
/** `devstate verify`: whether a saved state is intact and complete. */

import { Command } from 'commander';
import { exitCodeOf } from '../errors.js';
import { verifyFile, withInput } from '../operations/index.js';
import { readProgress } from './byte-progress.js';
import { outputOption } from './options.js';
import { formatBytes, printColumns, printJson } from './output.js';

export function verifyCommand(): Command {
  return new Command('verify')
    .description('check that a saved state is intact and complete')
    .argument('<file>', 'a saved state; - for stdin')
    .addOption(outputOption())
    .action(async (path: string, { output }: { output: 'text' | 'json' }) => {
      const progress = readProgress();
      const result = await withInput(path, (input) => verifyFile(input, progress.update)).finally(
        progress.end,
      );
      const { intact, format, size, records, digest, error } = result;
      if (error !== null) process.exitCode = exitCodeOf(error.code);
      if (output === 'json') return printJson(result);
      const counted = records === 1 ? '1 record' : `${records} records`;
      printColumns([
        ['Format', format ?? 'unknown'],
        ['Size', `${formatBytes(size)}, ${counted}${intact ? '' : ' before the defect'}`],
        ...(digest === null ? [] : [['Digest', `sha256 ${digest.slice(0, 32)}…`] as const]),
        ['Status', error === null ? 'intact and complete' : `${error.code}: ${error.message}`],
      ]);
    });
}
