// SPDX-License-Identifier: Apache-2.0
/**
 * REGION_READ, REGION_WRITE and REGION_WRITE_MULTI:
 *
 *     REGION_READ         offset u64, region u32, count u32         reply: the same, then the data
 *     REGION_WRITE        offset u64, region u32, count u32, data   reply: the first 16 bytes
 *     REGION_WRITE_MULTI  wr_cnt u64, { offset u64, region u32, count u32, data[8] } each
 *                                                                   reply: wr_cnt u64, writes done
 */

import { Errno, RequestError } from './errno.js';
import { readU64, requireBytes, writeU64 } from './reader.js';

export const REGION_ACCESS_LENGTH = 16;
export const WRITE_MULTI_ENTRY_LENGTH = 24;
/** Bytes of data in one entry of REGION_WRITE_MULTI. */
export const WRITE_MULTI_DATA_LENGTH = 8;

export interface RegionAccess {
  offset: number;
  region: number;
  count: number;
}

/** Reads into `access`, which the caller reuses: this is the hot path. */
export function decodeRegionAccess(view: DataView, at: number, end: number, access: RegionAccess): void {
  requireBytes(view, at, end, REGION_ACCESS_LENGTH, 'region access');
  access.offset = readU64(view, at);
  access.region = view.getUint32(at + 8, true);
  access.count = view.getUint32(at + 12, true);
}

export function encodeRegionAccess(
  view: DataView,
  at: number,
  offset: number,
  region: number,
  count: number,
): void {
  writeU64(view, at, offset);
  view.setUint32(at + 8, region, true);
  view.setUint32(at + 12, count, true);
}

/** Number of entries of a REGION_WRITE_MULTI, checked against the payload's length. */
export function decodeWriteMultiCount(view: DataView, at: number, end: number): number {
  requireBytes(view, at, end, 8, 'REGION_WRITE_MULTI');
  const count = readU64(view, at);
  if (count > Math.floor((end - at - 8) / WRITE_MULTI_ENTRY_LENGTH)) {
    throw new RequestError(Errno.EINVAL, `REGION_WRITE_MULTI of ${count} writes is longer than its message`);
  }
  return count;
}

/** Reads entry `index`; its data begin 16 bytes after the returned position. */
export function decodeWriteMultiEntry(
  view: DataView,
  at: number,
  index: number,
  access: RegionAccess,
): number {
  const entry = at + 8 + index * WRITE_MULTI_ENTRY_LENGTH;
  decodeRegionAccess(view, entry, entry + WRITE_MULTI_ENTRY_LENGTH, access);
  if (access.count > WRITE_MULTI_DATA_LENGTH) {
    throw new RequestError(Errno.EINVAL, `REGION_WRITE_MULTI entry of ${access.count} bytes (at most 8)`);
  }
  return entry;
}
