// SPDX-License-Identifier: Apache-2.0
/**
 * What a crash journal looks like in memory. Little endian, as the processor stores it.
 *
 * ```text
 *        0  magic u64, version u32, slots u32, length u64          what never changes
 *       64  committed u64                                          the word that decides
 *       72  performed u64                                          the transaction whose effects are known to be done
 *      128  exchange                                               one connection's messages, see exchange.ts
 *     1024  slot table: slots × { name 48 bytes, offset u64, capacity u64 }
 *           slots: { copy 0, copy 1 } each; a copy is
 *                  { transaction u64, length u32, crc32c u32, payload, padding to 64 }
 *           request buffer, reply buffer                           whole pages
 * ```
 */

import { DevstateError } from '../errors.js';

/** `DVSTJRNL`. */
export const MAGIC_LOW = 0x54535644;
export const MAGIC_HIGH = 0x4c4e524a;
export const JOURNAL_VERSION = 1;

/** Byte offsets. */
export const At = {
  MAGIC: 0,
  VERSION: 8,
  SLOTS: 12,
  LENGTH: 16,
  COMMITTED: 64,
  PERFORMED: 72,
  EXCHANGE: 128,
  TABLE: 1024,
} as const;

export const NAME_LENGTH = 48;
export const TABLE_ENTRY = 64;
/** Bytes before each copy: transaction, length, crc. */
export const COPY_HEADER = 16;
const COPY_ALIGNMENT = 64;
const PAGE = 4096;

export const MAX_SLOTS = 8192;
export const MAX_CAPACITY = 64 * 1024 * 1024;

/** One thing that is kept: named, and of at most so many bytes. */
export interface SlotSpec {
  readonly name: string;
  readonly capacity: number;
}

export interface Slot extends SlotSpec {
  /** Where copy 0 begins; copy 1 follows after `stride`. */
  readonly offset: number;
  readonly stride: number;
}

export interface Layout {
  readonly slots: readonly Slot[];
  readonly request: number;
  readonly reply: number;
  /** Bytes of the whole. */
  readonly length: number;
}

/** @param messageLength room for one request, and for one reply. @throws DEVSTATE_E_JOURNAL for slots that cannot be */
export function layoutOf(specs: readonly SlotSpec[], messageLength: number): Layout {
  if (specs.length > MAX_SLOTS)
    throw journalError(`it has ${specs.length} slots, at most ${MAX_SLOTS} can be`);
  let at = roundUp(At.TABLE + specs.length * TABLE_ENTRY, COPY_ALIGNMENT);
  const names = new Set<string>();
  const slots = specs.map(({ name, capacity }) => {
    if (name === '' || Buffer.byteLength(name) >= NAME_LENGTH || names.has(name))
      throw journalError(`"${name}" cannot be the name of a slot`);
    if (!Number.isInteger(capacity) || capacity <= 0 || capacity > MAX_CAPACITY)
      throw journalError(`slot ${name} of ${capacity} bytes`);
    names.add(name);
    const offset = at;
    const stride = roundUp(COPY_HEADER + capacity, COPY_ALIGNMENT);
    at += 2 * stride;
    return { name, capacity, offset, stride };
  });
  const request = roundUp(at, PAGE);
  const reply = roundUp(request + messageLength, PAGE);
  return { slots, request, reply, length: roundUp(reply + messageLength, PAGE) };
}

function roundUp(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}

export function journalError(why: string): DevstateError {
  return new DevstateError(
    'DEVSTATE_E_JOURNAL',
    `the crash journal cannot be used: ${why}; end the server and its supervisor, and start them anew`,
  );
}
