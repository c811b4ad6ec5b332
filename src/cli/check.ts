// SPDX-License-Identifier: Apache-2.0
/** `devstate check`: whether a device's state could be loaded into another device, and how it would travel. */

import { Command } from 'commander';
import { ExitCode } from '../errors.js';
import {
  type CheckDevicesResult,
  type CheckedPeer,
  checkDevices,
  type ProtocolChoice,
} from '../operations/index.js';
import { expectedText } from './expected-pause.js';
import { negotiationRows } from './negotiation.js';
import {
  downtimeOption,
  type FormatCommandOptions,
  formatOptions,
  imageUncheckedOption,
  outputOption,
  protocolOption,
} from './options.js';
import { formatBytes, printColumns, printJson } from './output.js';

interface CheckCommandOptions extends FormatCommandOptions {
  source: string;
  dest: string;
  protocol: ProtocolChoice;
  sourceQmp?: string;
  destQmp?: string;
  device?: string;
  imageUnchecked: string[];
  downtimeMs: number;
  output: 'text' | 'json';
}

export function checkCommand(): Command {
  const command = new Command('check')
    .description(
      "whether another device can take over a device's state, and what pause to expect; changes nothing",
    )
    .requiredOption(
      '--source <path>',
      'the device that has the state: a migration socket, or a VFIO device as for save',
    )
    .requiredOption('--dest <path>', 'the one that is to take it')
    .option('--source-qmp <path>', 'QMP socket of the QEMU that has the source: prove that it is its device')
    .option('--dest-qmp <path>', 'QMP socket of the QEMU that has the destination: the same')
    .option('--device <id>', "QEMU's id of the device, with --source-qmp or --dest-qmp")
    .addOption(imageUncheckedOption())
    .addOption(downtimeOption('the pause that a migration would aim at, all of it'));
  for (const option of formatOptions()) command.addOption(option);
  return command
    .addOption(protocolOption())
    .addOption(outputOption())
    .action(async (options: CheckCommandOptions) => {
      const result = await checkDevices(options);
      if (options.output === 'json') printJson(result);
      else printResult(result);
      if (!result.compatible) process.exitCode = ExitCode.incompatible;
    });
}

function printResult(result: CheckDevicesResult): void {
  printColumns([
    ['Compatible', result.compatible ? 'yes' : 'no'],
    ...result.reasons.map((reason) => ['', reason] as const),
    ...result.remarks.map((remark, i) => [i === 0 ? 'Note' : '', remark] as const),
    ['Source', peerText(result.source)],
    ['Destination', peerText(result.dest)],
    ['Model', result.source.model ?? 'not told'],
    ...parameterRows(result),
    ['State', sizeText(result.source)],
    ...negotiationRows(result.negotiation, 'Format'),
    ['Expected pause', pauseText(result)],
  ]);
}

function pauseText({ expected, notExpected }: CheckDevicesResult): string {
  if (expected === null) return `not known: ${notExpected}`;
  const [device] = expected.devices;
  const writes = `the device writes ${formatBytes(device?.dirtyBytesPerSecond ?? 0)}/s`;
  const how = device?.byMessage === true ? ', and would have to write by messages' : '';
  return `${expectedText(expected)}; ${writes}${how}`;
}

function peerText({ producer, protocol, interface: how, formats }: CheckedPeer): string {
  const who = producer === null ? 'unknown server' : `${producer.name} ${producer.version}`;
  const name = protocol === 'v1' ? `${who} by its region (v1)` : who;
  if (how === 'opaque') return `${name}, does not say which formats it has`;
  const list = formats.map((format) => `${format.name} ${format.version}`).join(', ');
  return how === 'values' ? `${name}, values of ${list}` : `${name}, ${list}`;
}

function parameterRows({ source, dest }: CheckDevicesResult): [string, string][] {
  const names = new Set([...Object.keys(source.parameters), ...Object.keys(dest.parameters)]);
  return [...names].sort().map((name) => {
    const [from, to] = [source.parameters[name] ?? '(none)', dest.parameters[name] ?? '(none)'];
    return [`  ${name}`, from === to ? `${from}` : `${from} at the source, ${to} at the destination`];
  });
}

function sizeText({ formats }: CheckedPeer): string {
  const known = formats.flatMap(({ name, estimate }) =>
    estimate === null ? [] : [`${formatBytes(estimate)} as ${name}`],
  );
  return known.length === 0 ? 'size not told' : `about ${known.join(', ')}`;
}
