// SPDX-License-Identifier: Apache-2.0
/** `devstate convert`: a saved state in another format. */

import { Command } from 'commander';
import { convertFile } from '../operations/index.js';
import { forceOption } from './options.js';
import { formatBytes } from './output.js';
import { rewrite } from './rewrite.js';
import { writeStderr } from './stderr.js';

interface ConvertCommandOptions {
  to: string;
  output: string;
  force?: boolean;
  allowLossy?: boolean;
  compress?: boolean;
}

export function convertCommand(): Command {
  return new Command('convert')
    .description('convert a saved state to another format')
    .requiredOption('--to <format>', 'the format: NAME or UUID, perhaps with @MAJOR or @MAJOR.MINOR')
    .argument('<in>', 'a saved state; - for stdin')
    .requiredOption('-o, --output <file>', 'where to; - for stdout')
    .addOption(forceOption())
    .option('--allow-lossy', 'take a way that loses a part of the state, if there is no other')
    .option('--compress', 'compress the result (default: as the input is)')
    .option('--no-compress', 'do not compress the result')
    .action(async (path: string, { to, output, force, allowLossy, compress }: ConvertCommandOptions) => {
      const { way, losses, bytes } = await rewrite(
        path,
        output,
        { written: 'blob', force },
        (input, file, progress) =>
          convertFile(input, file, { to, allowLossy: allowLossy === true, compress, progress }),
      );
      writeStderr(`wrote ${formatBytes(bytes)} to ${output}: ${way.join(' → ')}\n`);
      for (const loss of losses) writeStderr(`lost: ${loss}\n`);
    });
}
