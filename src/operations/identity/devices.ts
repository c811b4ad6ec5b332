// SPDX-License-Identifier: Apache-2.0
/**
 * Whether the devices that an operation was given are the vfio-user devices that a QEMU has. One that is left out stops
 * answering its guest when the VM continues elsewhere, so it must be left out on purpose.
 */

import { DevstateError } from '../../errors.js';
import {
  deviceName,
  deviceType,
  listVfioUserDevices,
  type QmpClient,
  VFIO_USER_TYPE,
  type VfioUserDevice,
} from '../../qemu/index.js';

export interface NamedDevices {
  /** What takes part, by QEMU's id. */
  readonly ids: readonly string[];
  /** What is left out on purpose, by id, or by QOM path for a device without an id; undefined where nothing can be. */
  readonly without: readonly string[] | undefined;
  /** How a device is named to take part, for messages: `--device ID,source=PATH,dest=PATH`. */
  readonly usage: (id: string) => string;
}

/** The vfio-user devices of one QEMU, and why those that were named are not all of them. */
export interface DeviceCensus {
  readonly present: readonly VfioUserDevice[];
  readonly reasons: readonly string[];
}

/** @param where for messages: `source`, `destination` */
export async function takeCensus(
  qmp: QmpClient,
  where: string,
  { ids, without, usage }: NamedDevices,
  signal?: AbortSignal,
): Promise<DeviceCensus> {
  const present = await listVfioUserDevices(qmp, { signal });
  const reasons: string[] = [];
  for (const device of present) {
    const name = deviceName(device);
    if (ids.includes(name) || without?.includes(name) === true) continue;
    const what = `the ${where} QEMU (${qmp.path}) has the vfio-user device ${name}, which is not named`;
    const way = device.id === undefined ? 'start it with id=NAME and name it' : `name it with ${usage(name)}`;
    const leave = without === undefined ? '' : `, or leave it behind with --without ${name}`;
    reasons.push(`${what}: ${way}${leave}`);
  }
  for (const id of ids) {
    const reason = await whyNotThere(qmp, where, { id, present }, signal);
    if (reason !== undefined) reasons.push(reason);
  }
  return { present, reasons };
}

/** Why a QEMU has no vfio-user device `id`; undefined if it has. @param present its vfio-user devices */
export async function whyNotThere(
  qmp: QmpClient,
  where: string,
  { id, present }: { readonly id: string; readonly present: readonly VfioUserDevice[] },
  signal?: AbortSignal,
): Promise<string | undefined> {
  const names = present.map(deviceName);
  if (names.includes(id)) return undefined;
  const type = await deviceType(qmp, id, { signal });
  const list = names.length === 0 ? 'it has none' : `it has ${names.join(', ')}`;
  const about = `device ${id}: the ${where} QEMU (${qmp.path})`;
  return type === undefined
    ? `${about} has no vfio-user device with this id (${list})`
    : `${about} has a ${type} under this id, not a ${VFIO_USER_TYPE} (${list})`;
}

/**
 * That a QEMU still has the devices that were named and no other. While QEMU sends a VM it refuses to add a device, so one
 * look then is enough; one that waits for a VM can be given a device at any time.
 * @throws DEVSTATE_E_INCOMPATIBLE
 */
export async function requireSameDevices(
  qmp: QmpClient,
  where: string,
  named: NamedDevices,
  signal?: AbortSignal,
): Promise<void> {
  const { reasons } = await takeCensus(qmp, where, named, signal);
  if (reasons.length === 0) return;
  const message = `the VM's devices were changed after the check (device_add, device_del): ${reasons.join('; ')}`;
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}

/** Names in `without` that no QEMU has: a mistyped one would leave behind nothing, and say nothing. */
export function unknownWithout(without: readonly string[], ...ends: readonly DeviceCensus[]): string[] {
  const known = new Set(ends.flatMap(({ present }) => present.map(deviceName)));
  return without
    .filter((name) => !known.has(name))
    .map((name) => `--without ${name}: no QEMU has a vfio-user device of this name`);
}
