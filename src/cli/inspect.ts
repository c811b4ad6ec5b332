// SPDX-License-Identifier: Apache-2.0
/** `devstate inspect`: what a saved state is and holds. */

import { Command } from 'commander';
import { formatDescriptions } from '../devices/catalogue.js';
import { ExitCode } from '../errors.js';
import { inspect, renderInspection } from '../formats/index.js';
import { readInput } from '../operations/index.js';
import { outputOption } from './options.js';
import { printJson } from './output.js';

export function inspectCommand(): Command {
  return new Command('inspect')
    .description('show what a saved state is and holds')
    .argument('<file>', 'a saved state; - for stdin')
    .addOption(outputOption())
    .action(async (input: string, options: { output: 'text' | 'json' }) => {
      const inspection = await inspect(readInput(input), { formats: formatDescriptions });
      if (options.output === 'json') printJson(inspection);
      else process.stdout.write(renderInspection(inspection));
      if (inspection.error !== null) process.exitCode = ExitCode.corrupt;
    });
}
