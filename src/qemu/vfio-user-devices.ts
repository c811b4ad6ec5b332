// SPDX-License-Identifier: Apache-2.0
/** The vfio-user devices that a QEMU has, wherever they are plugged in, as its object model lists them. */

import { type Cancellable, childrenOf } from './object-model.js';
import type { QmpClient } from './qmp.js';

export interface VfioUserDevice {
  /** QEMU's id of it; undefined for one that was given none. */
  readonly id: string | undefined;
  /** Where it is in QEMU's object model. */
  readonly path: string;
}

/** What a vfio-user device is called in messages and options: its id, or its path if it has none. */
export function deviceName({ id, path }: VfioUserDevice): string {
  return id ?? path;
}

export const VFIO_USER_TYPE = 'vfio-user-pci';

/** Every device that was asked for (-device, device_add) is in one of these, whatever bus it is on. */
export const WITH_IDS = '/machine/peripheral';
const WITHOUT_IDS = '/machine/peripheral-anon';

/** All vfio-user devices of a QEMU. */
export async function listVfioUserDevices(
  qmp: QmpClient,
  options: Cancellable = {},
): Promise<VfioUserDevice[]> {
  const found: VfioUserDevice[] = [];
  for (const parent of [WITH_IDS, WITHOUT_IDS]) {
    for (const { name, type } of await childrenOf(qmp, parent, options)) {
      if (type !== `child<${VFIO_USER_TYPE}>`) continue;
      found.push({ id: parent === WITH_IDS ? name : undefined, path: `${parent}/${name}` });
    }
  }
  return found;
}

/** QEMU's type of the device with the id `id`; undefined if there is none. */
export async function deviceType(
  qmp: QmpClient,
  id: string,
  options: Cancellable = {},
): Promise<string | undefined> {
  const children = await childrenOf(qmp, WITH_IDS, options);
  return /^child<(.*)>$/.exec(children.find(({ name }) => name === id)?.type ?? '')?.[1];
}

/** The socket that a vfio-user device was given to connect to, as its memory regions are named after it; undefined if they are not. */
export async function connectedSocket(
  qmp: QmpClient,
  { path }: VfioUserDevice,
  options: Cancellable = {},
): Promise<string | undefined> {
  const children = await childrenOf(qmp, path, options);
  for (const { name } of children) {
    const socket = /^vfio-user:(.+) base BAR \d/.exec(name)?.[1];
    if (socket !== undefined) return unescaped(socket);
  }
  return undefined;
}

/** The sockets of those devices that have an id and tell, by id. */
export async function connectedSockets(
  qmp: QmpClient,
  devices: readonly VfioUserDevice[],
  options: Cancellable = {},
): Promise<Record<string, string>> {
  const sockets: Record<string, string> = {};
  for (const device of devices) {
    const socket = await connectedSocket(qmp, device, options);
    if (device.id !== undefined && socket !== undefined) sockets[device.id] = socket;
  }
  return sockets;
}

/** Names in the object model have no slash: QEMU writes it as `\x2f`. */
function unescaped(name: string): string {
  return name.replaceAll(/\\x([0-9a-f]{2})/g, (_, hex: string) =>
    String.fromCharCode(Number.parseInt(hex, 16)),
  );
}
