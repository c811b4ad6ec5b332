// SPDX-License-Identifier: Apache-2.0
/**
 * DMA ranges that are handed over. A VMM may have 65,535 of them, and a document of that many objects would stop the event loop for
 * a tenth of a second: few are in the document, more are in a sealed memory file, as entries of 40 bytes, little endian.
 *
 *     ┌───────────────┬────────────┬──────────────┬─────────────┬────────────┐
 *     │ address f64   │ size f64   │ offset f64   │ flags f64   │ file f64   │    file: -1 for none
 *     └───────────────┴────────────┴──────────────┴─────────────┴────────────┘
 */

import { malformed } from '../documents/index.js';
import type { Fd } from '../transport/index.js';
import { eachInTurns } from '../turns.js';
import * as z from '../zod.js';
import { FdKind } from './fd-kind.js';
import { sealedContent, sealedMemory } from './sealed-memory.js';

/** More than so many are in the file. */
const MAX_PLAIN = 64;
const MAX_RANGES = 65_535;
const NUMBERS = 5;
const ENTRY_LENGTH = 8 * NUMBERS;
const NONE = -1;
/** Name of the file in the bundle. */
export const RANGES_NAME = 'dma-ranges';

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

const storedRanges = z.object({ stored: z.number().int().nonnegative().max(MAX_RANGES) });

/** Ranges in a document: as objects of the application, which has its own name for a file, or how many are in the file. */
export type RangeTable<Plain> = readonly Plain[] | z.infer<typeof storedRanges>;

export function rangeTable<Plain extends z.ZodType>(plain: Plain) {
  return z.union([z.array(plain), storedRanges]);
}

/** How an application has its ranges packed. */
export interface RangePacking<Item, Plain> {
  /** Called once for each, in order. */
  entryOf(item: Item, index: number): RangeEntry;
  /** An object of the application. */
  plainOf(range: RangeEntry): Plain;
  /** Puts an fd into the bundle, which owns it from then on. */
  add(kind: FdKind, name: string, fd: Fd): void;
}

/** @param items must not change meanwhile */
export async function packRanges<Item, Plain>(
  items: readonly Item[],
  { entryOf, plainOf, add }: RangePacking<Item, Plain>,
): Promise<Plain[] | z.infer<typeof storedRanges>> {
  if (items.length <= MAX_PLAIN) return items.map((item, index) => plainOf(entryOf(item, index)));
  const bytes = new Uint8Array(ENTRY_LENGTH * items.length);
  const view = new DataView(bytes.buffer);
  await eachInTurns(items, (item, index) => encodeEntry(view, ENTRY_LENGTH * index, entryOf(item, index)));
  add(FdKind.SEALED, RANGES_NAME, await sealedMemory('devstate-dma-ranges', [bytes]));
  return { stored: items.length };
}

/** @param take gives an fd out of the bundle @throws DEVSTATE_E_HANDOFF_BUNDLE */
export async function unpackRanges<Plain>(
  table: RangeTable<Plain>,
  plainOf: (range: RangeEntry) => Plain,
  take: (kind: FdKind, name: string) => Fd,
): Promise<readonly Plain[]> {
  if (!('stored' in table)) return table;
  const fd = take(FdKind.SEALED, RANGES_NAME);
  try {
    const content = await sealedContent(fd, ENTRY_LENGTH * MAX_RANGES);
    if (content.length !== ENTRY_LENGTH * table.stored)
      throw malformed(
        `${content.length} bytes of DMA ranges are not ${table.stored} entries of ${ENTRY_LENGTH}`,
      );
    const view = new DataView(content.buffer, content.byteOffset, content.length);
    const ranges: Plain[] = new Array(table.stored);
    await eachInTurns(ranges, (_, index) => {
      ranges[index] = plainOf(decodeEntry(view, index));
    });
    return ranges;
  } finally {
    fd.close();
  }
}

function encodeEntry(view: DataView, at: number, { address, size, offset, flags, file }: RangeEntry): void {
  view.setFloat64(at, address, true);
  view.setFloat64(at + 8, size, true);
  view.setFloat64(at + 16, offset, true);
  view.setFloat64(at + 24, flags, true);
  view.setFloat64(at + 32, file ?? NONE, true);
}

/** @throws DEVSTATE_E_HANDOFF_BUNDLE */
function decodeEntry(view: DataView, index: number): RangeEntry {
  const number = (field: number, least = 0): number => {
    const value = view.getFloat64(ENTRY_LENGTH * index + 8 * field, true);
    if (!Number.isSafeInteger(value) || value < least)
      throw malformed(`DMA range ${index} has ${value} where a size, a place or flags should be`);
    return value;
  };
  const file = number(4, NONE);
  return {
    address: number(0),
    size: number(1),
    offset: number(2),
    flags: number(3),
    file: file === NONE ? null : file,
  };
}
