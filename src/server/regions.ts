// SPDX-License-Identifier: Apache-2.0
/**
 * Regions as one connection has them: the device's, for a VMM, and the migration region of protocol v1, which each
 * connection has to itself. A manager, which never plays the guest, sees that one only.
 */

import type { ServerContext } from './command.js';
import type { ServedRegion } from './served-device.js';

export function regionCount({ device, migration }: ServerContext): number {
  const own = migration?.region;
  return own === undefined ? device.regions.length : Math.max(device.regions.length, own.index + 1);
}

export function findRegion(context: ServerContext, index: number): ServedRegion | undefined {
  const own = context.migration?.region;
  if (own !== undefined && index === own.index) return own.description;
  return context.role === 'vmm' ? context.device.regions[index] : undefined;
}

/** The access has been checked against `findRegion`. */
export function readRegion(
  { device, migration }: ServerContext,
  region: number,
  offset: number,
  target: Uint8Array,
): void | Promise<void> {
  const own = migration?.region;
  if (own !== undefined && region === own.index) return own.read(offset, target);
  return device.readRegion(region, offset, target);
}

export function writeRegion(
  { device, migration }: ServerContext,
  region: number,
  offset: number,
  data: Uint8Array,
): void | Promise<void> {
  const own = migration?.region;
  if (own !== undefined && region === own.index) return own.write(offset, data);
  return device.writeRegion(region, offset, data);
}
