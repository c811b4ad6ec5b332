// SPDX-License-Identifier: Apache-2.0
/**
 * iommufd (<linux/iommufd.h>), whose structures begin with their own length:
 *
 *     DESTROY              size u32, id u32
 *     IOAS_ALLOC           size u32, flags u32, out_ioas_id u32
 *     IOAS_IOVA_RANGES     size u32, ioas_id u32, num_iovas u32, reserved u32, allowed_iovas u64 (pointer),
 *                          out_iova_alignment u64; each range { start u64, last u64 }
 *     IOAS_MAP             size u32, flags u32, ioas_id u32, reserved u32, user_va u64, length u64, iova u64
 *     IOAS_MAP_FILE        size u32, flags u32, ioas_id u32, fd s32, start u64, length u64, iova u64
 *     IOAS_UNMAP           size u32, ioas_id u32, iova u64, length u64 (in the answer: what was unmapped)
 *     IOAS_CHANGE_PROCESS  size u32, reserved u32
 */

import { readU64, writeU64 } from '../../wire/index.js';
import { decodeIovaRange, type IovaRange, structure, viewOf } from './container.js';

export const DESTROY_LENGTH = 8;
export const IOAS_ALLOC_LENGTH = 12;
export const IOAS_IOVA_RANGES_LENGTH = 32;
export const IOAS_MAP_LENGTH = 40;
export const IOAS_UNMAP_LENGTH = 24;
export const IOAS_CHANGE_PROCESS_LENGTH = 8;
export const IOVA_RANGE_LENGTH = 16;

/** Where the address and the length of the memory stand in IOAS_MAP. */
export const IOAS_MAP_ADDRESS = 16;
export const IOAS_MAP_SIZE = 24;
/** Where the address of the array stands in IOAS_IOVA_RANGES. */
export const IOVA_RANGES_POINTER = 16;

function sized(length: number): { bytes: Uint8Array; view: DataView } {
  const { bytes, view } = structure(length);
  view.setUint32(0, length, true);
  return { bytes, view };
}

export function encodeDestroy(id: number): Uint8Array {
  const { bytes, view } = sized(DESTROY_LENGTH);
  view.setUint32(4, id, true);
  return bytes;
}

export function encodeIoasAlloc(): Uint8Array {
  return sized(IOAS_ALLOC_LENGTH).bytes;
}

/** The new IOAS's id. */
export function decodeIoasAlloc(bytes: Uint8Array): number {
  return viewOf(bytes).getUint32(8, true);
}

/** For `count` ranges, whose address the addon puts in. */
export function encodeIovaRanges(ioas: number, count: number): Uint8Array {
  const { bytes, view } = sized(IOAS_IOVA_RANGES_LENGTH);
  view.setUint32(4, ioas, true);
  view.setUint32(8, count, true);
  return bytes;
}

/** How many ranges there are, and the alignment that an IOVA must have. */
export function decodeIovaRanges(bytes: Uint8Array): { count: number; alignment: number } {
  const view = viewOf(bytes);
  return { count: view.getUint32(8, true), alignment: readU64(view, 24) };
}

export function decodeIovaRangeArray(bytes: Uint8Array, count: number): IovaRange[] {
  const view = viewOf(bytes);
  const there = Math.min(count, Math.floor(bytes.length / IOVA_RANGE_LENGTH));
  return Array.from({ length: there }, (_, index) => decodeIovaRange(view, IOVA_RANGE_LENGTH * index));
}

export interface IoasMap {
  /** `IoasMapFlag`. */
  readonly flags: number;
  readonly ioas: number;
  readonly iova: number;
  readonly length: number;
}

/** With the address left 0: the addon puts it there. */
export function encodeIoasMap({ flags, ioas, iova, length }: IoasMap): Uint8Array {
  const { bytes, view } = sized(IOAS_MAP_LENGTH);
  view.setUint32(4, flags, true);
  view.setUint32(8, ioas, true);
  writeU64(view, IOAS_MAP_SIZE, length);
  writeU64(view, 32, iova);
  return bytes;
}

export interface IoasMapFile extends IoasMap {
  readonly fd: number;
  /** Offset in the file. */
  readonly start: number;
}

export function encodeIoasMapFile({ flags, ioas, fd, start, length, iova }: IoasMapFile): Uint8Array {
  const { bytes, view } = sized(IOAS_MAP_LENGTH);
  view.setUint32(4, flags, true);
  view.setUint32(8, ioas, true);
  view.setInt32(12, fd, true);
  writeU64(view, 16, start);
  writeU64(view, 24, length);
  writeU64(view, 32, iova);
  return bytes;
}

export function encodeIoasUnmap(ioas: number, iova: number, length: number): Uint8Array {
  const { bytes, view } = sized(IOAS_UNMAP_LENGTH);
  view.setUint32(4, ioas, true);
  writeU64(view, 8, iova);
  writeU64(view, 16, length);
  return bytes;
}

/** Bytes that were unmapped. */
export function decodeIoasUnmapped(bytes: Uint8Array): number {
  return readU64(viewOf(bytes), 16);
}

export function encodeChangeProcess(): Uint8Array {
  return sized(IOAS_CHANGE_PROCESS_LENGTH).bytes;
}
