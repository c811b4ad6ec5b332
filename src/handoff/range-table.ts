// SPDX-License-Identifier: Apache-2.0
/**
 * DMA ranges in the document of a handoff. A VMM may have 65,535 of them, and JSON of that many objects would stop the event
 * loop for a tenth of a second: many go as one text, the base64 of entries of 40 bytes, little endian.
 *
 *     ┌───────────────┬────────────┬──────────────┬─────────────┬────────────┐
 *     │ address f64   │ size f64   │ offset f64   │ flags f64   │ file f64   │    file: -1 for none
 *     └───────────────┴────────────┴──────────────┴─────────────┴────────────┘
 */

import { z } from 'zod';
import { malformed } from './protocol.js';

/** More than so many are packed. Predecessors and successors of the first versions know only JSON. */
const MAX_PLAIN = 1024;
const MAX_RANGES = 65_535;
const NUMBERS = 5;
const ENTRY_LENGTH = 8 * NUMBERS;
const NONE = -1;

/** A range of guest memory. */
export interface RangeEntry {
  readonly address: number;
  readonly size: number;
  /** In the file, bytes. */
  readonly offset: number;
  /** As in DMA_MAP. */
  readonly flags: number;
  /** Which of the files that go along; null: the memory is reached by messages. */
  readonly file: number | null;
}

export const packedRanges = z.object({ packed: z.string() });
type PackedRanges = z.infer<typeof packedRanges>;

/** Ranges in a document: as objects of the application, which has its own name for a file, or packed. */
export type RangeTable<Plain> = readonly Plain[] | PackedRanges;

export function rangeTable<Plain extends z.ZodType>(plain: Plain) {
  return z.union([z.array(plain), packedRanges]);
}

/** @param plainOf makes an object of the application of a range */
export function packRanges<Plain>(
  ranges: readonly RangeEntry[],
  plainOf: (range: RangeEntry) => Plain,
): Plain[] | PackedRanges {
  return ranges.length > MAX_PLAIN ? pack(ranges) : ranges.map(plainOf);
}

/** @throws DEVSTATE_E_HANDOFF_BUNDLE */
export function unpackRanges<Plain>(
  table: RangeTable<Plain>,
  plainOf: (range: RangeEntry) => Plain,
): readonly Plain[] {
  return 'packed' in table ? unpack(table).map(plainOf) : table;
}

export function pack(ranges: readonly RangeEntry[]): PackedRanges {
  const bytes = Buffer.alloc(ENTRY_LENGTH * ranges.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (const [index, { address, size, offset, flags, file }] of ranges.entries()) {
    const at = ENTRY_LENGTH * index;
    view.setFloat64(at, address, true);
    view.setFloat64(at + 8, size, true);
    view.setFloat64(at + 16, offset, true);
    view.setFloat64(at + 24, flags, true);
    view.setFloat64(at + 32, file ?? NONE, true);
  }
  return { packed: bytes.toString('base64') };
}

export function unpack({ packed }: PackedRanges): RangeEntry[] {
  const bytes = Buffer.from(packed, 'base64');
  const count = bytes.length / ENTRY_LENGTH;
  if (!Number.isInteger(count) || count > MAX_RANGES)
    throw malformed(
      `${bytes.length} bytes of DMA ranges are not up to ${MAX_RANGES} entries of ${ENTRY_LENGTH}`,
    );
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const number = (index: number, field: number, least = 0): number => {
    const value = view.getFloat64(ENTRY_LENGTH * index + 8 * field, true);
    if (!Number.isSafeInteger(value) || value < least)
      throw malformed(
        `DMA range ${index} of the packed ones has ${value} where a size, a place or flags should be`,
      );
    return value;
  };
  return Array.from({ length: count }, (_, index) => {
    const file = number(index, 4, NONE);
    return {
      address: number(index, 0),
      size: number(index, 1),
      offset: number(index, 2),
      flags: number(index, 3),
      file: file === NONE ? null : file,
    };
  });
}
