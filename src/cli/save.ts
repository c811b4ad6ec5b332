// SPDX-License-Identifier: Apache-2.0
/** `devstate save`: a device's state into a file. */

import { Command } from 'commander';
import { type ProtocolChoice, save } from '../operations/index.js';
import {
  type DeviceCommandOptions,
  deviceOptions,
  forceOption,
  givenDevice,
  givenOwner,
  type OwnerCommandOptions,
  ownerOptions,
  protocolOption,
  thenOption,
  trapOption,
} from './options.js';
import { formatBytes, formatMs, printWarning } from './output.js';
import { untilSignalled } from './signals.js';
import { writeStderr } from './stderr.js';

interface SaveCommandOptions extends DeviceCommandOptions, OwnerCommandOptions {
  output: string;
  force?: boolean;
  format: string;
  protocol: ProtocolChoice;
  trap?: boolean;
  model?: string;
  compress?: boolean;
  precopy?: boolean;
  then: 'run' | 'stop';
}

export function saveCommand(): Command {
  const command = new Command('save').description(
    "save a device's state to a file; the device stops meanwhile",
  );
  for (const option of [...deviceOptions(), ...ownerOptions()]) command.addOption(option);
  return command
    .requiredOption('-o, --output <file>', 'where to; - for stdout')
    .addOption(forceOption())
    .option('--format <name>', "the format, by name or UUID; auto for the device's own choice", 'auto')
    .option(
      '--model <uri>',
      'the model of a device that does not say what it is: its stream is wrapped, as what --format names',
    )
    .option('--compress', 'compress it, if the device can')
    .option(
      '--precopy',
      'save what can be saved while the device runs, if it can: it stops for the rest only',
    )
    .addOption(protocolOption())
    .addOption(trapOption())
    .addOption(thenOption())
    .action(async (options: SaveCommandOptions) => {
      const { bytes, precopyBytes, stoppedMs } = await untilSignalled((signal) =>
        save({
          ...givenDevice(options),
          ...givenOwner(options),
          output: options.output,
          force: options.force === true,
          warn: printWarning,
          format: options.format,
          ...(options.model === undefined ? {} : { model: options.model }),
          protocol: options.protocol,
          trap: options.trap ?? false,
          compress: options.compress ?? false,
          precopy: options.precopy ?? false,
          afterwards: options.then,
          signal,
        }),
      );
      const before = precopyBytes === 0 ? '' : `, ${formatBytes(precopyBytes)} of it while the device ran`;
      writeStderr(`saved ${formatBytes(bytes)} to ${options.output} in ${formatMs(stoppedMs)}${before}\n`);
    });
}
