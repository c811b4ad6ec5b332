// SPDX-License-Identifier: Apache-2.0
/** Opening a device that is to be saved, loaded or asked: at a migration socket, or of the kernel's VFIO. */

import { MigrationClient } from '../client/index.js';
import { DevstateError } from '../errors.js';
import type { MigrationEnd } from '../migration/index.js';
import { isVfioDeviceName, openKernelMigration } from '../vfio/migration/index.js';
import { type DeviceSocket, type DeviceSocketOptions, openDeviceSocket } from './device-socket.js';
import { type OwnerOptions, requireOwner } from './identity/index.js';

/** Where a device is. */
export type DeviceAddress =
  | { readonly migrationSocket: string }
  /** `/dev/vfio/devices/vfioN`, or `GROUP:NAME`. */
  | { readonly vfioDevice: string };

/** A device whose state can be moved. */
export interface OpenEnd {
  /** As its user calls it. */
  readonly path: string;
  readonly device: MigrationEnd;
  /** `MigrationFlag` bits of the device. */
  readonly flags: number;
}

/** What a text means that can be either: a VFIO device by its form, else a socket. */
export function deviceAddress(text: string): DeviceAddress {
  return isVfioDeviceName(text) ? { vfioDevice: text } : { migrationSocket: text };
}

/**
 * @param options for a migration socket
 * @throws DEVSTATE_E_CONNECT, DEVSTATE_E_NOT_MIGRATABLE; DEVSTATE_E_VFIO_… of a VFIO device
 */
export async function openMigrationEnd(
  address: DeviceAddress,
  options: DeviceSocketOptions = {},
): Promise<OpenEnd> {
  if ('migrationSocket' in address) return openDeviceSocket(address.migrationSocket, options);
  if (options.protocol === 'v1') {
    const message = `${address.vfioDevice} cannot be migrated by v1: the kernel's VFIO has v2 only`;
    throw new DevstateError('DEVSTATE_E_NOT_MIGRATABLE', message);
  }
  const device = await openKernelMigration(address.vfioDevice);
  return { path: address.vfioDevice, device, flags: await device.flags() };
}

/** A device server behind a socket. @throws DEVSTATE_E_USAGE for a device of the kernel's VFIO */
export function requireSocket({ path, device, flags }: OpenEnd): DeviceSocket {
  if (device instanceof MigrationClient) return { path, device, flags };
  const message = `${path}: a device of the kernel's VFIO cannot be proven to be a QEMU's; leave the QMP socket out`;
  throw new DevstateError('DEVSTATE_E_USAGE', message);
}

/**
 * That an open device is the one of the VM that was named, see `requireOwner`.
 * @throws DEVSTATE_E_INCOMPATIBLE; DEVSTATE_E_USAGE when a VM is named for a device of the kernel's VFIO
 */
export async function requireOwnedEnd(
  end: OpenEnd,
  options: OwnerOptions,
  what: string,
  signal?: AbortSignal,
): Promise<void> {
  // The kernel gives a device to one process at a time: no VMM has it.
  if (options.owner === undefined && !(end.device instanceof MigrationClient)) return;
  await requireOwner({ ...requireSocket(end), role: 'the device' }, options, what, signal);
}
