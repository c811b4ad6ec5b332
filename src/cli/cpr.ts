// SPDX-License-Identifier: Apache-2.0
/** `devstate cpr`: between the two QEMUs of a cpr-transfer, to see what the source hands over and to check it. */

import { Command } from 'commander';
import { DevstateError } from '../errors.js';
import { withOutput } from '../operations/index.js';
import { type CprReport, type DescriptorKind, relayCprChannel } from '../qemu/index.js';
import { forceOption, outputOption, parsePositive } from './options.js';
import { formatBytes, printColumns, printError, printJson, printWarning } from './output.js';
import { untilSignalled } from './signals.js';
import { writeStderr } from './stderr.js';

interface CprCommandOptions {
  listen: string;
  forward: string;
  require: string[];
  passUnknown?: boolean;
  save?: string;
  force?: boolean;
  timeoutS: number;
  output: 'text' | 'json';
}

export function cprCommand(): Command {
  return new Command('cpr')
    .description(
      "stand between the QEMUs of a cpr-transfer: show, check and pass on the source's descriptors",
    )
    .requiredOption('--listen <path>', "where the source's channel of type cpr connects")
    .requiredOption('--forward <path>', "where the destination's channel of type cpr listens")
    .option(
      '--require <name[:id]>',
      'refuse unless this descriptor is in the list; repeatable',
      (name: string, names: string[]) => [...names, name],
      [],
    )
    .option('--pass-unknown', 'pass on what is of a version that is not known here, instead of refusing it')
    .option('--save <file>', 'write the list to this file, for devstate inspect')
    .addOption(forceOption())
    .option(
      '--timeout-s <seconds>',
      'from when the source connects until the destination has loaded',
      parsePositive,
      60,
    )
    .addOption(outputOption())
    .action(cpr);
}

async function cpr(options: CprCommandOptions): Promise<void> {
  const { listen, forward, save, force } = options;
  if (listen === forward)
    throw new DevstateError(
      'DEVSTATE_E_USAGE',
      '--listen and --forward have the same path; give each its own',
    );
  // A file that cannot be written is noticed before a VM is on its way.
  const report =
    save === undefined
      ? await relay(options)
      : await withOutput(
          save,
          async (output) => {
            const taken = await relay(options);
            output.write(taken.stream);
            return taken;
          },
          { written: 'cpr-list', force, warn: printWarning },
        );
  const { stream, error, ...found } = report;
  if (options.output === 'json') {
    const failure = error === null ? null : { code: error.code, message: error.message };
    printJson({ ...found, bytes: stream.length, error: failure });
  } else printColumns(reportRows(report));
  if (error !== null) process.exitCode = printError(error);
}

function relay(options: CprCommandOptions): Promise<CprReport> {
  const { listen, forward, require: requirements, passUnknown = false, timeoutS } = options;
  return untilSignalled((signal) =>
    relayCprChannel({
      listenPath: listen,
      forwardPath: forward,
      requirements,
      passUnknown,
      timeoutMs: timeoutS * 1000,
      signal,
      onListening: () => writeStderr(`waiting for the source at ${listen}\n`),
    }),
  );
}

function reportRows(report: CprReport): [string, string][] {
  const { forwarded, version, descriptors, vfioDevices, unknown, reasons } = report;
  return [
    ['Forwarded', forwarded ? 'yes' : 'no'],
    ...reasons.map((reason): [string, string] => ['', reason]),
    ['Version', version === null ? 'not told' : String(version)],
    ['Descriptors', String(descriptors.length)],
    ...descriptors.map(({ name, id, descriptor }, i): [string, string] => [
      `  ${i}`,
      `${name}, id ${id}: ${descriptorText(descriptor)}`,
    ]),
    ['VFIO devices', String(vfioDevices.length)],
    ...vfioDevices.map(({ name, devid, ioasId, hwptId }, i): [string, string] => [
      `  ${i}`,
      `${name}: device ${devid}, address space ${ioasId}, page table ${hwptId}`,
    ]),
    ...(unknown === null ? [] : unknownRows(unknown)),
  ];
}

function unknownRows({ reason, offset, descriptors }: NonNullable<CprReport['unknown']>): [string, string][] {
  return [
    ['Not known', `from byte ${offset} on: ${reason}`],
    ...descriptors.map((kind, i): [string, string] => [`  ${i}`, descriptorText(kind)]),
  ];
}

function descriptorText(descriptor: DescriptorKind): string {
  switch (descriptor.kind) {
    case 'memfd': {
      const { size, name, seals } = descriptor;
      const sealed = seals.length === 0 ? 'no seals' : `sealed: ${seals.join(', ')}`;
      return `memory file ${name}, ${formatBytes(size)}, ${sealed}`;
    }
    case 'file':
      return `file ${descriptor.path}, ${formatBytes(descriptor.size)}`;
    case 'socket': {
      const { family, type, listening } = descriptor;
      return `${family} ${type} socket${listening ? ', listening' : ''}`;
    }
    case 'eventfd':
    case 'iommufd':
      return descriptor.kind;
    case 'vfio-container':
      return 'VFIO container';
    case 'vfio-group':
      return `VFIO group ${descriptor.group}`;
    case 'vfio-device':
      return descriptor.path === null ? 'VFIO device' : `VFIO device ${descriptor.path}`;
    case 'kvm':
      return `KVM (${descriptor.what})`;
    case 'tun':
    case 'vhost':
    case 'device':
      return `${descriptor.kind} ${descriptor.path}`;
    case 'other':
      return descriptor.what;
  }
}
