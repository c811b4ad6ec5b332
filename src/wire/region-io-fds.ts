// SPDX-License-Identifier: Apache-2.0
/**
 * DEVICE_GET_REGION_IO_FDS, 16 bytes and then 40 bytes for each sub-region; the fds ride along, de-duplicated:
 *
 *     argsz u32, flags u32 = 0, index u32, count u32
 *     offset u64, size u64, fd_index u32, type u32, flags u32, padding u32, datamatch|user_data u64
 */

import { readU64, requireBytes, writeU64 } from './reader.js';

export const REGION_IO_FDS_LENGTH = 16;
export const REGION_IO_FD_ENTRY_LENGTH = 40;

export interface RegionIoFdsRequest {
  argsz: number;
  flags: number;
  index: number;
  count: number;
}

export interface SubRegionIoFd {
  offset: number;
  size: number;
  /** Index into the message's fds. */
  fdIndex: number;
  /** `IoFdType`. */
  type: number;
  flags: number;
  /** datamatch of an ioeventfd, user_data of an ioregionfd. */
  data: bigint;
}

export function decodeRegionIoFdsHeader(view: DataView, at: number, end: number): RegionIoFdsRequest {
  requireBytes(view, at, end, REGION_IO_FDS_LENGTH, 'DEVICE_GET_REGION_IO_FDS');
  return {
    argsz: view.getUint32(at, true),
    flags: view.getUint32(at + 4, true),
    index: view.getUint32(at + 8, true),
    count: view.getUint32(at + 12, true),
  };
}

export function regionIoFdsLength(count: number): number {
  return REGION_IO_FDS_LENGTH + count * REGION_IO_FD_ENTRY_LENGTH;
}

/** Writes the header and, if `entries` is not empty, the sub-regions. */
export function encodeRegionIoFds(
  view: DataView,
  at: number,
  header: RegionIoFdsRequest,
  entries: readonly SubRegionIoFd[] = [],
): void {
  view.setUint32(at, header.argsz, true);
  view.setUint32(at + 4, header.flags, true);
  view.setUint32(at + 8, header.index, true);
  view.setUint32(at + 12, header.count, true);
  entries.forEach((entry, i) => {
    const position = at + regionIoFdsLength(i);
    writeU64(view, position, entry.offset);
    writeU64(view, position + 8, entry.size);
    view.setUint32(position + 16, entry.fdIndex, true);
    view.setUint32(position + 20, entry.type, true);
    view.setUint32(position + 24, entry.flags, true);
    view.setUint32(position + 28, 0, true);
    view.setBigUint64(position + 32, entry.data, true);
  });
}

/** Reads the sub-regions of a reply. */
export function decodeRegionIoFds(view: DataView, at: number, end: number): SubRegionIoFd[] {
  const { count } = decodeRegionIoFdsHeader(view, at, end);
  requireBytes(view, at, end, regionIoFdsLength(count), 'DEVICE_GET_REGION_IO_FDS reply');
  return Array.from({ length: count }, (_, i) => {
    const position = at + regionIoFdsLength(i);
    return {
      offset: readU64(view, position),
      size: readU64(view, position + 8),
      fdIndex: view.getUint32(position + 16, true),
      type: view.getUint32(position + 20, true),
      flags: view.getUint32(position + 24, true),
      data: view.getBigUint64(position + 32, true),
    };
  });
}
