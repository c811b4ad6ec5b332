// SPDX-License-Identifier: Apache-2.0
/** `devstate migrate`: moves a VM and its vfio-user devices from one QEMU to another. */

import { Command } from 'commander';
import { type DevicePair, type MigrateResult, migrate } from '../operations/index.js';
import { expectedText } from './expected-pause.js';
import { negotiationRows } from './negotiation.js';
import {
  collect,
  deviceCollector,
  downtimeOption,
  type FormatCommandOptions,
  formatOptions,
  imageUncheckedOption,
  outputOption,
  parsePositive,
  parseSize,
  unprovenOption,
} from './options.js';
import { formatBytes, formatMs, printColumns, printJson } from './output.js';
import { createProgress } from './progress.js';
import { outlivingStrays, untilSignalled } from './signals.js';
import { writeStderr } from './stderr.js';

interface MigrateCommandOptions extends FormatCommandOptions {
  sourceQmp: string;
  destQmp: string;
  uri: string;
  device: DevicePair[];
  without: string[];
  unproven: string[];
  imageUnchecked: string[];
  downtimeMs: number;
  timeoutS: number;
  bandwidth?: number;
  output: 'text' | 'json';
}

export function migrateCommand(): Command {
  const command = new Command('migrate')
    .description('move a running VM and its vfio-user devices to another QEMU')
    .requiredOption('--source-qmp <path>', 'QMP socket of the QEMU that runs the VM')
    .requiredOption('--dest-qmp <path>', 'QMP socket of the QEMU that waits for it (-S -incoming defer)')
    .requiredOption('--uri <uri>', 'where QEMU sends the VM: unix:PATH or tcp:HOST:PORT')
    .requiredOption(
      '--device <id,source=path,dest=path>',
      "a device: QEMU's id, migration sockets of its servers (repeatable)",
      deviceCollector(['source', 'dest']),
      [],
    )
    .option(
      '--without <device>',
      'leave a vfio-user device of the VM behind: its guest loses it (repeatable)',
      collect,
      [],
    )
    .addOption(unprovenOption())
    .addOption(imageUncheckedOption())
    .addOption(downtimeOption())
    .option('--timeout-s <s>', 'give up and stay at the source after this time', parsePositive, 3600)
    .option('--bandwidth <size>', "bound for QEMU's rate, bytes per second (default: none)", parseSize);
  for (const option of formatOptions()) command.addOption(option);
  return command.addOption(outputOption()).action(run);
}

async function run(options: MigrateCommandOptions): Promise<void> {
  const progress = createProgress(options.output);
  try {
    const wanted = {
      sourceQmp: options.sourceQmp,
      destQmp: options.destQmp,
      uri: options.uri,
      devices: options.device,
      without: options.without,
      unproven: options.unproven,
      imageUnchecked: options.imageUnchecked,
      downtimeMs: options.downtimeMs,
      timeoutMs: options.timeoutS * 1000,
      bytesPerSecond: options.bandwidth ?? 0,
      format: options.format,
      allowLossy: options.allowLossy ?? false,
      compress: options.compress ?? false,
    };
    const result = await outlivingStrays(() =>
      untilSignalled((signal) => migrate(wanted, { signal, progress: progress.update })),
    );
    progress.end();
    if (options.output === 'json') printJson(result);
    else printResult(result);
  } finally {
    progress.end();
  }
}

function expectedRow({ expected, downtime }: MigrateResult): [string, string][] {
  if (expected === undefined) return [];
  return [['Expected', expectedText(expected, downtime.pagesMs)]];
}

function printResult(result: MigrateResult): void {
  const { downtime, bytes } = result;
  const devstate = `devstate ${formatMs(downtime.devstateMs)}, QEMU ${formatMs(downtime.qemuMs)}`;
  printColumns([
    [
      'Status',
      result.running ? 'completed, running at the destination' : 'completed, paused at the destination',
    ],
    ['Time', formatMs(result.totalMs)],
    ['Downtime', `${formatMs(downtime.totalMs)} (${devstate})`],
    ...expectedRow(result),
    ['RAM sent', formatBytes(bytes.ram)],
    ['Device state', `${formatBytes(bytes.precopy)} in pre-copy, ${formatBytes(bytes.stop)} at the stop`],
    ['Dirty pages', `${result.dirtyPages} written by devices (${formatBytes(bytes.pages)})`],
    ...result.devices.flatMap(({ id, negotiation }) => negotiationRows(negotiation, `Device ${id}`)),
  ]);
  for (const warning of result.warnings) writeStderr(`warning: ${warning}\n`);
}
