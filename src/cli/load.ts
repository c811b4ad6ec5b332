// SPDX-License-Identifier: Apache-2.0
/** `devstate load`: a device's state from a file. */

import { Command } from 'commander';
import { load, type ProtocolChoice } from '../operations/index.js';
import {
  type DeviceCommandOptions,
  deviceOptions,
  givenDevice,
  givenOwner,
  type OwnerCommandOptions,
  ownerOptions,
  protocolOption,
  thenOption,
  trapOption,
} from './options.js';
import { formatBytes } from './output.js';
import { writeStderr } from './stderr.js';

interface LoadCommandOptions extends DeviceCommandOptions, OwnerCommandOptions {
  allowLossy?: boolean;
  protocol: ProtocolChoice;
  raw?: boolean;
  trap?: boolean;
  then: 'run' | 'stop';
}

export function loadCommand(): Command {
  const command = new Command('load').description("load a device's state from a file");
  for (const option of [...deviceOptions(), ...ownerOptions()]) command.addOption(option);
  return command
    .option('--allow-lossy', 'convert in a way that loses a part of the state, if there is no other')
    .option(
      '--raw',
      'give a device that says of no formats the bytes of the file as they are, whatever they are',
    )
    .addOption(protocolOption())
    .addOption(trapOption())
    .addOption(thenOption())
    .argument('<file>', 'a saved state; - for stdin')
    .action(async (input: string, options: LoadCommandOptions) => {
      const { bytes } = await load({
        ...givenDevice(options),
        ...givenOwner(options),
        input,
        allowLossy: options.allowLossy ?? false,
        raw: options.raw ?? false,
        protocol: options.protocol,
        trap: options.trap ?? false,
        afterwards: options.then,
      });
      writeStderr(`loaded ${formatBytes(bytes)} from ${input}\n`);
    });
}
