// SPDX-License-Identifier: Apache-2.0
/** `devstate load`: a device's state from a file. */

import { Command } from 'commander';
import { load } from '../operations/index.js';
import { migrationSocketOption, thenOption } from './options.js';
import { formatBytes } from './output.js';

interface LoadCommandOptions {
  migrationSocket: string;
  allowLossy?: boolean;
  then: 'run' | 'stop';
}

export function loadCommand(): Command {
  return new Command('load')
    .description("load a device's state from a file")
    .addOption(migrationSocketOption())
    .option('--allow-lossy', 'convert in a way that loses a part of the state, if there is no other')
    .addOption(thenOption())
    .argument('<file>', 'a saved state; - for stdin')
    .action(async (input: string, options: LoadCommandOptions) => {
      const { bytes } = await load({
        migrationSocket: options.migrationSocket,
        input,
        allowLossy: options.allowLossy ?? false,
        afterwards: options.then,
      });
      process.stderr.write(`loaded ${formatBytes(bytes)} from ${input}\n`);
    });
}
