// SPDX-License-Identifier: Apache-2.0
/**
 * What an access to the migration region reaches: one register as a whole, or a part of the data section. "Field
 * accesses are only supported at their native width and alignment": everything else is refused. Pure.
 */

import { Errno, MigrationRegister, migrationRegisterWidths, RequestError } from '../../wire/index.js';

/**
 * Where the data section begins: a page, so that it can be mapped while the registers, in front of it, never are.
 * What lies between the two is not there.
 */
export const DATA_OFFSET = 4096;

export type RegionPlace =
  | { readonly kind: 'register'; readonly register: MigrationRegister }
  /** `at` counts from the begin of the data section. */
  | { readonly kind: 'data'; readonly at: number };

const registers: readonly MigrationRegister[] = Object.values(MigrationRegister);
const places = new Map<number, RegionPlace>(
  registers.map((register) => [register, { kind: 'register', register }]),
);

/**
 * @param dataSize bytes of the data section
 * @throws RequestError EINVAL for a part of a register, more than one, the gap behind them, or past the end
 */
export function regionPlace(offset: number, length: number, dataSize: number): RegionPlace {
  if (offset >= DATA_OFFSET && offset + length <= DATA_OFFSET + dataSize)
    return { kind: 'data', at: offset - DATA_OFFSET };
  const place = places.get(offset);
  if (place === undefined || migrationRegisterWidths.get(offset) !== length) {
    throw new RequestError(
      Errno.EINVAL,
      `no register of the migration region is ${length} bytes at ${offset}`,
    );
  }
  return place;
}
