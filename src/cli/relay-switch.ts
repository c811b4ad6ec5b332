// SPDX-License-Identifier: Apache-2.0
/** `devstate relay-switch`: has a relay replace its device server. */

import { Command } from 'commander';
import { DevstateError } from '../errors.js';
import { relaySwitch } from '../operations/index.js';
import { givenOwner, type OwnerCommandOptions, outputOption, ownerOptions } from './options.js';
import { formatBytes, formatMs, printColumns, printJson } from './output.js';

interface RelaySwitchCommandOptions extends OwnerCommandOptions {
  control: string;
  server: string;
  withState?: boolean;
  withoutState?: boolean;
  imageUnchecked?: boolean;
  output: 'text' | 'json';
}

export function relaySwitchCommand(): Command {
  const command = new Command('relay-switch')
    .description("replace a relay's device server under its running VM")
    .requiredOption('--control <path>', "the relay's control socket")
    .requiredOption('--server <path>', 'where the new device server listens')
    .option('--with-state', "move the device's state to it (the default)")
    .option('--without-state', 'do not: the device keeps its state somewhere else, or has none')
    .option(
      '--image-unchecked',
      'the images of both servers are kept the same by other means than being one file',
    );
  for (const option of ownerOptions()) command.addOption(option);
  return command.addOption(outputOption()).action(run);
}

async function run(options: RelaySwitchCommandOptions): Promise<void> {
  const { control, server, withState, withoutState, imageUnchecked = false, output } = options;
  if (withState === true && withoutState === true)
    throw new DevstateError('DEVSTATE_E_USAGE', '--with-state and --without-state: it can only be one');
  const state = withoutState === true ? 'without' : 'with';
  const report = await relaySwitch({ control, server, state, imageUnchecked, ...givenOwner(options) });
  if (output === 'json') {
    printJson({ status: 'completed', ...report });
    return;
  }
  printColumns([
    ['Status', 'completed'],
    ['Server', report.server],
    ['State', report.withState ? formatBytes(report.stateBytes) : 'not moved'],
    ['VMM waited', formatMs(report.heldMs)],
    ['  for the old server', formatMs(report.drainMs)],
    ['  for the new one to catch up', formatMs(report.catchUpMs)],
    ['  state', formatMs(report.stateMs)],
  ]);
}
