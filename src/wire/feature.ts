// SPDX-License-Identifier: Apache-2.0
/**
 * DEVICE_FEATURE, 8 bytes and then the feature's data:
 *
 *     argsz u32, flags u32 (index | GET | SET | PROBE), data
 *       MIGRATION              flags u64
 *       MIG_DEVICE_STATE       device_state u32, data_fd u32 (unused in vfio-user)
 *       DMA_LOGGING_START      page_size u64, num_ranges u32, reserved u32, { iova u64, length u64 } each
 *       DMA_LOGGING_REPORT     iova u64, length u64, page_size u64, then in the reply the bitmap
 *       MIG_DATA_SIZE          stop_copy_length u64
 *       DEVSTATE_DMA_MAPS      first u32, most u32 (optional; all without), in the reply
 *                              { address u64, size u64, flags u32, reserved u32 } each
 *       DEVSTATE_DMA_FILES     dma-files.ts
 */

import { Errno, RequestError } from './errno.js';
import { readU64, requireBytes, writeU64 } from './reader.js';

export const FEATURE_LENGTH = 8;
export const MIG_DEVICE_STATE_LENGTH = 8;
export const DMA_LOGGING_START_LENGTH = 16;
export const DMA_LOGGING_REPORT_LENGTH = 24;
export const DMA_MAP_ENTRY_LENGTH = 24;
const DMA_MAPS_REQUEST_LENGTH = 8;
/** Most ranges that DMA_LOGGING_START may name: the kernel's own minimum guarantee is 256. */
export const MAX_LOGGING_RANGES = 4096;

export interface FeatureHeader {
  argsz: number;
  flags: number;
}

export function decodeFeatureHeader(view: DataView, at: number, end: number): FeatureHeader {
  requireBytes(view, at, end, FEATURE_LENGTH, 'DEVICE_FEATURE');
  return { argsz: view.getUint32(at, true), flags: view.getUint32(at + 4, true) };
}

export function encodeFeatureHeader(view: DataView, at: number, argsz: number, flags: number): void {
  view.setUint32(at, argsz, true);
  view.setUint32(at + 4, flags, true);
}

export interface DmaRange {
  iova: number;
  length: number;
}

export interface DmaLoggingStart {
  pageSize: number;
  /** Empty: log every write. */
  ranges: DmaRange[];
}

/** Reads the data of a DMA_LOGGING_START. `at` is where the data begin. */
export function decodeDmaLoggingStart(view: DataView, at: number, end: number): DmaLoggingStart {
  requireBytes(view, at, end, DMA_LOGGING_START_LENGTH, 'DMA_LOGGING_START');
  const count = view.getUint32(at + 8, true);
  if (count > MAX_LOGGING_RANGES) throw new RequestError(Errno.E2BIG, `DMA_LOGGING_START of ${count} ranges`);
  requireBytes(view, at, end, DMA_LOGGING_START_LENGTH + 16 * count, 'DMA_LOGGING_START ranges');
  const ranges = Array.from({ length: count }, (_, i) => ({
    iova: readU64(view, at + DMA_LOGGING_START_LENGTH + 16 * i),
    length: readU64(view, at + DMA_LOGGING_START_LENGTH + 16 * i + 8),
  }));
  return { pageSize: readU64(view, at), ranges };
}

export function encodeDmaLoggingStart(view: DataView, at: number, start: DmaLoggingStart): void {
  writeU64(view, at, start.pageSize);
  view.setUint32(at + 8, start.ranges.length, true);
  view.setUint32(at + 12, 0, true);
  start.ranges.forEach((range, i) => {
    writeU64(view, at + DMA_LOGGING_START_LENGTH + 16 * i, range.iova);
    writeU64(view, at + DMA_LOGGING_START_LENGTH + 16 * i + 8, range.length);
  });
}

export interface DmaLoggingReport extends DmaRange {
  pageSize: number;
}

export function decodeDmaLoggingReport(view: DataView, at: number, end: number): DmaLoggingReport {
  requireBytes(view, at, end, DMA_LOGGING_REPORT_LENGTH, 'DMA_LOGGING_REPORT');
  const report = { iova: readU64(view, at), length: readU64(view, at + 8), pageSize: readU64(view, at + 16) };
  // Here, because the length of the reply depends on it.
  if (!isPowerOfTwo(report.pageSize)) {
    throw new RequestError(Errno.EINVAL, `page size ${report.pageSize} is not a power of two`);
  }
  return report;
}

/** Exact for all safe integers, which a logarithm is not. */
export function isPowerOfTwo(value: number): boolean {
  return value >= 1 && 2 ** Math.round(Math.log2(value)) === value;
}

export function encodeDmaLoggingReport(view: DataView, at: number, report: DmaLoggingReport): void {
  writeU64(view, at, report.iova);
  writeU64(view, at + 8, report.length);
  writeU64(view, at + 16, report.pageSize);
}

/** Bytes of the bitmap for `length` bytes of IOVA: one bit a page, rounded up to whole u64s. */
export function dirtyBitmapLength(length: number, pageSize: number): number {
  return Math.ceil(Math.ceil(length / pageSize) / 64) * 8;
}

/** Most entries of one DEVSTATE_DMA_MAPS or DEVSTATE_DMA_FILES reply, so that it fits a message. */
export const MAX_DMA_MAP_ENTRIES = 32_768;

/** Which ranges a manager asks for: from the one with index `first` on, `most` of them. */
export interface DmaMapsRequest {
  readonly first: number;
  readonly most: number;
}

/** Reads the data of a GET of DEVSTATE_DMA_MAPS or DEVSTATE_DMA_FILES. `at` is where the data begin. */
export function decodeDmaMapsRequest(view: DataView, at: number, end: number): DmaMapsRequest {
  if (at === end) return { first: 0, most: MAX_DMA_MAP_ENTRIES };
  requireBytes(view, at, end, DMA_MAPS_REQUEST_LENGTH, 'DEVSTATE_DMA_MAPS');
  return {
    first: view.getUint32(at, true),
    most: Math.min(view.getUint32(at + 4, true), MAX_DMA_MAP_ENTRIES),
  };
}

export function encodeDmaMapsRequest({ first, most }: DmaMapsRequest): Uint8Array {
  const bytes = new Uint8Array(DMA_MAPS_REQUEST_LENGTH);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, first, true);
  view.setUint32(4, most, true);
  return bytes;
}

export interface DmaMapEntry {
  address: number;
  size: number;
  /** `DmaMapFlag`. */
  flags: number;
}

export function encodeDmaMapEntries(view: DataView, at: number, entries: readonly DmaMapEntry[]): void {
  entries.forEach((entry, i) => {
    const position = at + i * DMA_MAP_ENTRY_LENGTH;
    writeU64(view, position, entry.address);
    writeU64(view, position + 8, entry.size);
    view.setUint32(position + 16, entry.flags, true);
    view.setUint32(position + 20, 0, true);
  });
}

export function decodeDmaMapEntries(view: DataView, at: number, end: number): DmaMapEntry[] {
  requireBytes(view, at, end, 0, 'DEVSTATE_DMA_MAPS');
  return Array.from({ length: Math.floor((end - at) / DMA_MAP_ENTRY_LENGTH) }, (_, i) => {
    const position = at + i * DMA_MAP_ENTRY_LENGTH;
    return {
      address: readU64(view, position),
      size: readU64(view, position + 8),
      flags: view.getUint32(position + 16, true),
    };
  });
}
