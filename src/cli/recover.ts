// SPDX-License-Identifier: Apache-2.0
/** `devstate recover`: puts a source back after a migration whose manager died. */

import { Command } from 'commander';
import { recover } from '../operations/index.js';
import { collect, deviceCollector, outputOption, unprovenOption } from './options.js';
import { printColumns, printJson } from './output.js';

interface RecoverCommandOptions {
  sourceQmp: string;
  destQmp?: string;
  device: { id: string; source: string }[];
  without: string[];
  unproven: string[];
  giveUpDestination?: boolean;
  output: 'text' | 'json';
}

export function recoverCommand(): Command {
  return new Command('recover')
    .description('let the source of a broken-off migration run again')
    .requiredOption('--source-qmp <path>', "QMP socket of the source's QEMU")
    .option('--dest-qmp <path>', "QMP socket of the destination's QEMU, which must not run the VM")
    .requiredOption(
      '--device <id,source=path>',
      "a device: QEMU's id, migration socket of its server (repeatable)",
      deviceCollector(['source']),
      [],
    )
    .option(
      '--without <device>',
      'a vfio-user device of the VM that did not migrate with it (repeatable)',
      collect,
      [],
    )
    .option(
      '--give-up-destination',
      'go back although the VM may have run at a destination that is gone: what it did there is lost',
    )
    .addOption(unprovenOption())
    .addOption(outputOption())
    .action(async (options: RecoverCommandOptions) => {
      const result = await recover({
        sourceQmp: options.sourceQmp,
        ...(options.destQmp === undefined ? {} : { destQmp: options.destQmp }),
        devices: options.device,
        without: options.without,
        unproven: options.unproven,
        giveUpDestination: options.giveUpDestination === true,
      });
      if (options.output === 'json') printJson(result);
      else {
        printColumns([
          ['Status', 'recovered'],
          ['VM', result.running ? 'running' : 'paused, as before the migration'],
          ...result.devices.map(({ id }) => [`Device ${id}`, 'running'] as const),
        ]);
      }
    });
}
