// SPDX-License-Identifier: Apache-2.0
/** What a guest of the counter device sees: its registers in BAR 0, and the entries of its rings. Little endian. */

/** Offsets in BAR 0. */
export const CounterRegister = {
  /** `CNTR`, read only. */
  IDENTITY: 0x00,
  /** u64, read only: the counter. */
  VALUE: 0x08,
  /** u64, read only: how many additions there were. */
  ADDITIONS: 0x10,
  /** u64, read only: how many compare-and-swaps found what they expected. */
  EXCHANGES: 0x18,
  /** u32, write: adds that to the counter. Twice is not the same as once. */
  ADD: 0x20,
  /** u64. */
  CAS_EXPECTED: 0x28,
  /** u64. */
  CAS_DESIRED: 0x30,
  /** u32. Write anything: the counter becomes CAS_DESIRED if it is CAS_EXPECTED. Read: 1 if it was. */
  CAS: 0x38,
  /** u64: guest addresses of the rings. Writing ENTRIES makes them the device's. */
  COMMANDS: 0x40,
  COMPLETIONS: 0x48,
  /** u32: entries of each ring, 2 to 256; 0 for none. Begins at entry 0 again, with phase 1. */
  ENTRIES: 0x50,
  /** u32, write: one past the last command. */
  TAIL: 0x54,
  /** u32, read only: the next command that is taken. */
  HEAD: 0x58,
} as const;

export const IDENTITY = 0x52544e43;
export const REGISTERS_SIZE = 4096;

/**
 * ```text
 *      0  opcode u32, id u32, operand u64, expected u64, reserved u64
 * ```
 */
export const COMMAND_LENGTH = 32;
/** `operand` is added, or is what the counter becomes if it is `expected`. */
export const CounterOpcode = { ADD: 1, COMPARE_AND_SWAP: 2 } as const;

/**
 * ```text
 *      0  id u32, status u32, value u64 (after the command), reserved u64, reserved u32, phase u32
 * ```
 * The entry is there when its phase is: 1 on the first way round the ring, 0 on the second, and so on.
 */
export const COMPLETION_LENGTH = 32;
export const CounterStatus = {
  DONE: 0,
  /** The counter was not what a compare-and-swap expected; the value says what it is. */
  DIFFERENT: 1,
  INVALID: 2,
} as const;

/** Vector that says that there are completions. */
export const COMPLETION_VECTOR = 0;
