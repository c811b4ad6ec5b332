// SPDX-License-Identifier: Apache-2.0
/**
 * Numbers of migration protocol v1, the *region* of Linux 5.2 to 5.16 (`struct vfio_device_migration_info`):
 *
 *      0               4           8               16            24           32        data_offset
 *     | device_state u32 | reserved | pending_bytes | data_offset | data_size | …        | data section …
 *
 * The registers are accessed one at a time, at their own width and alignment. Never log a state of this protocol as a
 * number: its 1 is RUNNING, and that of v2 is STOP.
 */

/** What the TYPE capability of the migration region says (`VFIO_REGION_TYPE_MIGRATION`, `VFIO_REGION_SUBTYPE_MIGRATION`). */
export const MIGRATION_REGION_TYPE = { type: 3, subtype: 1 } as const;

/** Offsets of the registers. */
export const MigrationRegister = {
  DEVICE_STATE: 0,
  RESERVED: 4,
  PENDING_BYTES: 8,
  DATA_OFFSET: 16,
  DATA_SIZE: 24,
} as const;
export type MigrationRegister = (typeof MigrationRegister)[keyof typeof MigrationRegister];

/** Bytes that the registers take: the data section begins somewhere behind them. */
export const MIGRATION_REGISTERS_LENGTH = 32;

/** Width of each register, bytes. */
export const migrationRegisterWidths: ReadonlyMap<number, number> = new Map([
  [MigrationRegister.DEVICE_STATE, 4],
  [MigrationRegister.RESERVED, 4],
  [MigrationRegister.PENDING_BYTES, 8],
  [MigrationRegister.DATA_OFFSET, 8],
  [MigrationRegister.DATA_SIZE, 8],
]);

/** Bits of device_state (`VFIO_DEVICE_STATE_*` of v1). Bits 3 to 31 are reserved. */
export const DeviceStateBit = { RUNNING: 1, SAVING: 2, RESUMING: 4, MASK: 7 } as const;

/** The combinations of bits that are states, named like the states of v2 that they mean. */
export const DeviceState = {
  STOP: 0b000,
  RUNNING: 0b001,
  STOP_COPY: 0b010,
  PRE_COPY: 0b011,
  RESUMING: 0b100,
  /** `VFIO_DEVICE_STATE_ERROR`: told by the device, never written to it. */
  ERROR: 0b110,
} as const;
export type DeviceState = (typeof DeviceState)[keyof typeof DeviceState];

const names = Object.keys(DeviceState) as (keyof typeof DeviceState)[];

/** The state's name and its bits, `PRE_COPY (011)`; of what is no state, the bits. */
export function deviceStateName(state: number): string {
  const bits = state.toString(2).padStart(3, '0');
  const name = names.find((one) => DeviceState[one] === state);
  return name === undefined ? `device_state ${bits}` : `${name} (${bits})`;
}
