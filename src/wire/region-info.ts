// SPDX-License-Identifier: Apache-2.0
/**
 * DEVICE_GET_REGION_INFO, 32 bytes and then a chain of capabilities:
 *
 *     argsz u32, flags u32, index u32, cap_offset u32, size u64, offset u64
 *     capability: id u16, version u16, next u32, then by id
 *       SPARSE_MMAP  nr_areas u32, reserved u32, { offset u64, size u64 } each
 *       TYPE         type u32, subtype u32
 *
 * `argsz` of the request is the largest reply payload the client takes; of the reply, the size needed. Capabilities
 * are included only when all of them fit. `cap_offset` and `next` count from the start of this structure.
 */

import { RegionCapability, RegionInfoFlag } from './constants.js';
import { Errno, RequestError } from './errno.js';
import { readU64, requireBytes, writeU64 } from './reader.js';

export const REGION_INFO_LENGTH = 32;
/** Most capabilities and mappable areas that we follow in a peer's answer. */
const MAX_CAPABILITIES = 16;
const MAX_AREAS = 4096;

export interface MmapArea {
  offset: number;
  size: number;
}

export interface RegionInfo {
  argsz: number;
  flags: number;
  index: number;
  size: number;
  /** Offset to give mmap with the fd that comes along. */
  offset: number;
  sparseAreas?: readonly MmapArea[];
  /** Device-specific region: `VFIO_REGION_TYPE_*` and its subtype. */
  type?: { type: number; subtype: number };
}

/** Bytes of the reply with all its capabilities. */
export function regionInfoLength(info: RegionInfo): number {
  let length = REGION_INFO_LENGTH;
  if (info.type !== undefined) length += 16;
  if (info.sparseAreas !== undefined) length += 16 + 16 * info.sparseAreas.length;
  return length;
}

export interface RegionInfoRequest {
  argsz: number;
  index: number;
}

export function decodeRegionInfoRequest(view: DataView, at: number, end: number): RegionInfoRequest {
  requireBytes(view, at, end, REGION_INFO_LENGTH, 'DEVICE_GET_REGION_INFO');
  return { argsz: view.getUint32(at, true), index: view.getUint32(at + 8, true) };
}

/**
 * Writes the reply for a client that takes `argsz` bytes; capabilities are left out when they do not fit.
 * @returns bytes written
 */
export function encodeRegionInfo(view: DataView, at: number, info: RegionInfo, argsz: number): number {
  const needed = regionInfoLength(info);
  const withCapabilities = needed > REGION_INFO_LENGTH && argsz >= needed;
  view.setUint32(at, needed, true);
  view.setUint32(at + 4, needed > REGION_INFO_LENGTH ? info.flags | RegionInfoFlag.CAPS : info.flags, true);
  view.setUint32(at + 8, info.index, true);
  view.setUint32(at + 12, withCapabilities ? REGION_INFO_LENGTH : 0, true);
  writeU64(view, at + 16, info.size);
  writeU64(view, at + 24, info.offset);
  if (!withCapabilities) return REGION_INFO_LENGTH;

  let position = REGION_INFO_LENGTH;
  if (info.type !== undefined) {
    const next = info.sparseAreas === undefined ? 0 : position + 16;
    encodeCapabilityHeader(view, at + position, RegionCapability.TYPE, next);
    view.setUint32(at + position + 8, info.type.type, true);
    view.setUint32(at + position + 12, info.type.subtype, true);
    position += 16;
  }
  if (info.sparseAreas !== undefined) {
    encodeCapabilityHeader(view, at + position, RegionCapability.SPARSE_MMAP, 0);
    view.setUint32(at + position + 8, info.sparseAreas.length, true);
    view.setUint32(at + position + 12, 0, true);
    position += 16;
    for (const area of info.sparseAreas) {
      writeU64(view, at + position, area.offset);
      writeU64(view, at + position + 8, area.size);
      position += 16;
    }
  }
  return position;
}

function encodeCapabilityHeader(view: DataView, at: number, id: number, next: number): void {
  view.setUint16(at, id, true);
  view.setUint16(at + 2, 1, true);
  view.setUint32(at + 4, next, true);
}

/** Reads a reply and follows its capability chain, which must move forward and stay inside. */
export function decodeRegionInfo(view: DataView, at: number, end: number): RegionInfo {
  requireBytes(view, at, end, REGION_INFO_LENGTH, 'DEVICE_GET_REGION_INFO');
  const info: RegionInfo = {
    argsz: view.getUint32(at, true),
    flags: view.getUint32(at + 4, true),
    index: view.getUint32(at + 8, true),
    size: readU64(view, at + 16),
    offset: readU64(view, at + 24),
  };
  let position = view.getUint32(at + 12, true);
  // Below the first place behind the fixed part, so that no capability lies inside it.
  let last = REGION_INFO_LENGTH - 1;
  for (let count = 0; position !== 0; count++) {
    if (count === MAX_CAPABILITIES || position <= last || at + position + 16 > end) {
      throw new RequestError(Errno.EPROTO, 'region capability chain leaves its message');
    }
    last = position;
    decodeCapability(view, at + position, end, info);
    position = view.getUint32(at + position + 4, true);
  }
  return info;
}

function decodeCapability(view: DataView, at: number, end: number, info: RegionInfo): void {
  const id = view.getUint16(at, true);
  if (id === RegionCapability.TYPE) {
    info.type = { type: view.getUint32(at + 8, true), subtype: view.getUint32(at + 12, true) };
  } else if (id === RegionCapability.SPARSE_MMAP) {
    const count = view.getUint32(at + 8, true);
    if (count > MAX_AREAS || at + 16 + 16 * count > end) {
      throw new RequestError(Errno.EPROTO, 'sparse mmap areas leave their message');
    }
    info.sparseAreas = Array.from({ length: count }, (_, i) => ({
      offset: readU64(view, at + 16 + 16 * i),
      size: readU64(view, at + 24 + 16 * i),
    }));
  }
}
