// SPDX-License-Identifier: Apache-2.0
/** That the two QEMUs and the device servers that were named for a migration belong together. */

import { isSameQemu, pciPlace, queryVmIdentity } from '../../qemu/index.js';
import {
  type Claim,
  type DeviceCensus,
  type NamedDevices,
  type NamedSocket,
  proveClaims,
  proveImages,
  takeCensus,
  unknownWithout,
} from '../identity/index.js';
import type { MovedDevice, Vm } from './parties.js';
import type { MigrateOptions } from './types.js';

/** The vfio-user devices of both QEMUs. */
export interface Censuses {
  readonly source: DeviceCensus;
  readonly destination: DeviceCensus;
}

type Qemus = Readonly<Record<'source' | 'destination', Pick<Vm, 'qmp'>>>;

export function namedIn({ devices, without = [] }: MigrateOptions): NamedDevices {
  return {
    ids: devices.map(({ id }) => id),
    without,
    usage: (id) => `--device ${id},source=PATH,dest=PATH`,
  };
}

/** What both QEMUs are asked before qtest is needed. @returns what does not fit, as `reasons`, and what is odd, as `remarks` */
export async function identifyQemus(
  { source, destination }: Qemus,
  options: MigrateOptions,
  signal: AbortSignal,
): Promise<{ censuses: Censuses; reasons: string[]; remarks: string[] }> {
  const reasons: string[] = [];
  if (await isSameQemu(source.qmp, destination.qmp, { signal })) {
    const paths = `${source.qmp.path} and ${destination.qmp.path}`;
    reasons.push(
      `source and destination are one QEMU, reached by ${paths}: name the QEMU that waits for the VM`,
    );
  }
  const named = namedIn(options);
  const censuses = {
    source: await takeCensus(source.qmp, 'source', named, signal),
    destination: await takeCensus(destination.qmp, 'destination', named, signal),
  };
  reasons.push(...censuses.source.reasons, ...censuses.destination.reasons);
  reasons.push(...unknownWithout(options.without ?? [], censuses.source, censuses.destination));
  reasons.push(...(await moved(source, destination, censuses, signal)));
  const [from, to] = [
    await queryVmIdentity(source.qmp, { signal }),
    await queryVmIdentity(destination.qmp, { signal }),
  ];
  if (from.uuid !== to.uuid)
    reasons.push(
      `the source VM has the UUID ${from.uuid}, the destination QEMU was started for ${to.uuid}: name the QEMU that waits for this VM, or start it with -uuid ${from.uuid}`,
    );
  const remarks =
    from.name === undefined || to.name === undefined || from.name === to.name
      ? []
      : [`the VM is named ${from.name} at the source and ${to.name} at the destination`];
  return { censuses, reasons, remarks };
}

/** Devices that their guest would not find where it knows them: QEMU's own devices say so themselves, these do not. */
async function moved(
  source: Qemus['source'],
  destination: Qemus['destination'],
  censuses: Censuses,
  signal: AbortSignal,
): Promise<string[]> {
  const reasons: string[] = [];
  for (const { id, path } of censuses.source.present) {
    const there = censuses.destination.present.find((device) => device.id === id && id !== undefined);
    if (there === undefined) continue;
    const from = await pciPlace(source.qmp, path, { signal });
    const to = await pciPlace(destination.qmp, there.path, { signal });
    if (from === to) continue;
    reasons.push(
      `device ${id} is at the PCI address ${from} at the source and ${to} at the destination, where its guest would not find it: start the destination with the source's addr= (and bus=)`,
    );
  }
  return reasons;
}

/** @returns what could not be proven, as sentences */
export async function proveMigration(
  vms: Readonly<Record<'source' | 'destination', Vm>>,
  devices: readonly MovedDevice[],
  { source, destination }: Censuses,
  { unproven = [], imageUnchecked = [] }: MigrateOptions,
  signal: AbortSignal,
): Promise<string[]> {
  const socketOf = (device: MovedDevice, where: 'source' | 'destination'): NamedSocket => ({
    path: device[where].path,
    role: `the ${where} of device ${device.id}`,
    device: device[where].device,
  });
  const claims = (where: 'source' | 'destination'): Claim[] =>
    devices.map((device) => ({ id: device.id, socket: socketOf(device, where) }));
  const [from, to] = [claims('source'), claims('destination')];
  const wanted = ({ id }: Claim): boolean => !unproven.includes(id);
  const sockets = (all: readonly Claim[]): NamedSocket[] => all.map(({ socket }) => socket);
  const unwanted = (all: readonly Claim[]): NamedSocket[] => sockets(all.filter((claim) => !wanted(claim)));
  const atSource = { ...vms.source, name: 'the source QEMU', devices: source.present, isFresh: false };
  const atDestination = {
    ...vms.destination,
    name: 'the destination QEMU',
    devices: destination.present,
    isFresh: true,
  };
  const reasons = [
    ...(await proveClaims(atSource, from.filter(wanted), [...unwanted(from), ...sockets(to)], signal)),
    ...(await proveClaims(atDestination, to.filter(wanted), [...unwanted(to), ...sockets(from)], signal)),
  ];
  // Servers that do not belong together have different images, and that is not the mistake.
  if (reasons.length > 0) return reasons;
  for (const { id, source: from, destination: to } of devices)
    if (!imageUnchecked.includes(id)) reasons.push(...(await proveImages(id, from, to)));
  return reasons;
}
