// SPDX-License-Identifier: Apache-2.0
/** `devstate vfio`: devices of the kernel's VFIO: listed, held for others, moved from process to process. */

import { Command } from 'commander';
import { DevstateError } from '../errors.js';
import {
  askStatus,
  askToGive,
  type ListedDevice,
  type ListedGroup,
  listVfio,
  VfioAssignment,
  type VfioList,
  VfioStation,
} from '../vfio/index.js';
import { createLog } from './logger.js';
import { collect, outputOption, parsePositive, parseUser } from './options.js';
import { formatBytes, formatMs, printColumns, printJson } from './output.js';
import { untilTold } from './signals.js';
import { writeStderr } from './stderr.js';

interface Output {
  output: 'text' | 'json';
}

export function vfioCommand(): Command {
  return new Command('vfio')
    .description("devices of the kernel's VFIO: list, hold, lend, move between processes")
    .addCommand(listCommand())
    .addCommand(holdCommand())
    .addCommand(lendCommand())
    .addCommand(returnCommand())
    .addCommand(statusCommand())
    .addCommand(transferCommand());
}

// list

function listCommand(): Command {
  return new Command('list')
    .description('IOMMU groups, their devices and drivers, and what stands in the way of using them')
    .addOption(outputOption())
    .action(list);
}

function list({ output }: Output): void {
  const found = listVfio();
  if (output === 'json') printJson(found);
  else printList(found);
}

function printList(found: VfioList): void {
  const present = (there: boolean): string => (there ? 'there' : 'not there');
  printColumns([
    ['/dev/vfio/vfio', present(found.container)],
    ['/dev/iommu', present(found.iommufd)],
    [
      'Groups',
      found.groups.length === 0
        ? 'none: this machine has no IOMMU, or it is off'
        : String(found.groups.length),
    ],
    ...found.groups.flatMap(groupRows),
  ]);
}

function groupRows({ id, devices, viable, reasons }: ListedGroup): [string, string][] {
  const state = viable && reasons.length === 0 ? 'ready' : `not ready: ${reasons.join('; ')}`;
  return [[`Group ${id}`, state], ...devices.map((device): [string, string] => ['', deviceRow(device)])];
}

function deviceRow({ name, id, driver, cdev }: ListedDevice): string {
  return [name, id, driver ?? 'no driver', cdev].filter((part) => part !== null).join(', ');
}

// hold

interface HoldOptions {
  group: string[];
  device: string[];
  socket: string;
  user: number[];
}

function holdCommand(): Command {
  return new Command('hold')
    .description('open groups or devices, keep them, and lend them to processes that may not')
    .option('--group <id>', 'an IOMMU group; may be given again', collect, [])
    .option('--device <path>', 'a file of /dev/vfio/devices, for iommufd; may be given again', collect, [])
    .requiredOption('--socket <path>', 'where to listen')
    .option('--user <user>', 'who may borrow, by name or number; may be given again', parseUser, [])
    .action(hold);
}

async function hold({ group, device, socket, user }: HoldOptions): Promise<void> {
  if (group.length > 0 && device.length > 0)
    throw new DevstateError(
      'DEVSTATE_E_USAGE',
      'give --group or --device: the kernel has devices by one of the two',
    );
  // Listened for before the socket exists: a process that sees it may send one.
  const told = untilTold();
  const log = createLog('vfio');
  const assignment =
    group.length > 0
      ? VfioAssignment.openGroups(group)
      : device.length > 0
        ? VfioAssignment.openCdevs(device)
        : undefined;
  let station: VfioStation;
  try {
    station = new VfioStation(
      socket,
      {
        adopted: (taken) => log('info', `has ${taken.deviceNames.join(', ')}`),
      },
      { ...(assignment === undefined ? {} : { assignment }), lends: true, users: user, log },
    );
  } catch (error) {
    assignment?.close();
    throw error;
  }
  log('info', `holding ${assignment?.deviceNames.join(', ') ?? 'nothing yet'} at ${socket}`);
  await told;
  await station.close();
}

// lend, return, transfer: one station gives to another

interface Times {
  timeoutS: number;
}

function timeoutOption(command: Command): Command {
  return command.option('--timeout-s <s>', 'longest that a phase of the handoff may take', parsePositive, 10);
}

function lendCommand(): Command {
  const command = new Command('lend')
    .description('have a holder lend what it has to a process')
    .requiredOption('--socket <path>', 'of the holder')
    .requiredOption('--to <path>', "the process's socket")
    .action(({ socket, to, ...rest }: { socket: string; to: string } & Times & Output) =>
      move(socket, to, rest),
    );
  return timeoutOption(command).addOption(outputOption());
}

function returnCommand(): Command {
  const command = new Command('return')
    .description('have a process give back to the holder what it has')
    .requiredOption('--socket <path>', 'of the holder')
    .requiredOption('--from <path>', "the process's socket")
    .action(({ socket, from, ...rest }: { socket: string; from: string } & Times & Output) =>
      move(from, socket, rest),
    );
  return timeoutOption(command).addOption(outputOption());
}

function transferCommand(): Command {
  const command = new Command('transfer')
    .description('have a process hand over what it has to another, while the devices run')
    .requiredOption('--from <path>', "the source's socket")
    .requiredOption('--to <path>', "the destination's socket")
    .action(({ from, to, ...rest }: { from: string; to: string } & Times & Output) => move(from, to, rest));
  return timeoutOption(command).addOption(outputOption());
}

async function move(from: string, to: string, { timeoutS, output }: Times & Output): Promise<void> {
  const report = await askToGive(from, to, timeoutS * 1000);
  if (output === 'json') return printJson({ status: 'completed', ...report });
  printColumns([
    ['Status', `completed, process ${report.pid} has the devices`],
    ['fds', String(report.fds)],
    ...Object.entries(report.ms).map(([phase, ms]): [string, string] => [phase, formatMs(ms)]),
  ]);
  if (report.unconfirmed)
    writeStderr('warning: the destination took over, but does not answer: see whether it runs\n');
}

// status

function statusCommand(): Command {
  return new Command('status')
    .description('who has the devices')
    .requiredOption('--socket <path>', 'of a holder, or of a process that has devices')
    .addOption(outputOption())
    .action(status);
}

async function status({ socket, output }: { socket: string } & Output): Promise<void> {
  const found = await askStatus(socket);
  if (output === 'json') return printJson(found);
  const { pid, uid, lends, held, owner, generation, space, groups, devices, dmaMappings, lockedBytes } =
    found;
  const who = held
    ? 'this process'
    : owner === null
      ? 'no process'
      : `process ${owner.pid}${owner.running ? '' : ', which has ended'}`;
  printColumns([
    ['Process', `${pid}, user ${uid}${lends ? ', a holder' : ''}`],
    ['Devices', devices.join(', ') || 'none'],
    ...(devices.length === 0
      ? []
      : ([
          ['Groups', groups.join(', ') || 'none: opened as devices'],
          ['Addresses', space ?? ''],
          ['Operated by', who],
          ['Generation', String(generation)],
          ['DMA mappings', `${dmaMappings}, ${formatBytes(lockedBytes)} locked`],
        ] as [string, string][])),
  ]);
}
