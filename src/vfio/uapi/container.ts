// SPDX-License-Identifier: Apache-2.0
/**
 * Container and group (<linux/vfio.h>):
 *
 *     GROUP_GET_STATUS  argsz u32, flags u32
 *     IOMMU_MAP_DMA     argsz u32, flags u32, vaddr u64, iova u64, size u64
 *     IOMMU_UNMAP_DMA   argsz u32, flags u32, iova u64, size u64 (in the answer: what was unmapped)
 *     IOMMU_GET_INFO    argsz u32, flags u32, iova_pgsizes u64, cap_offset u32, capabilities
 *       IOVA_RANGE      nr_iovas u32, reserved u32, { start u64, end u64 } each
 *       DMA_AVAIL       avail u32
 */

import { readU64, writeU64 } from '../../wire/index.js';
import { capabilities } from './capabilities.js';
import { IommuCapability, IommuInfoFlag } from './requests.js';

export const GROUP_STATUS_LENGTH = 8;
export const MAP_DMA_LENGTH = 32;
export const UNMAP_DMA_LENGTH = 24;
/** Without capabilities, padded as the compiler does. */
export const IOMMU_INFO_LENGTH = 24;

/** Where the address and the length of the memory stand in MAP_DMA. */
export const MAP_DMA_VADDR = 8;
export const MAP_DMA_SIZE = 24;

export function encodeGroupStatus(): Uint8Array {
  const { bytes, view } = structure(GROUP_STATUS_LENGTH);
  view.setUint32(0, GROUP_STATUS_LENGTH, true);
  return bytes;
}

/** The flags: `GroupFlag`. */
export function decodeGroupStatus(bytes: Uint8Array): number {
  return viewOf(bytes).getUint32(4, true);
}

export interface MapDma {
  /** `MapDmaFlag`. */
  readonly flags: number;
  readonly iova: number;
  readonly size: number;
}

/** With the address left 0: the addon puts it there. */
export function encodeMapDma({ flags, iova, size }: MapDma): Uint8Array {
  const { bytes, view } = structure(MAP_DMA_LENGTH);
  view.setUint32(0, MAP_DMA_LENGTH, true);
  view.setUint32(4, flags, true);
  writeU64(view, 16, iova);
  writeU64(view, MAP_DMA_SIZE, size);
  return bytes;
}

export interface UnmapDma {
  /** `UnmapDmaFlag`. */
  readonly flags: number;
  readonly iova: number;
  readonly size: number;
}

export function encodeUnmapDma({ flags, iova, size }: UnmapDma): Uint8Array {
  const { bytes, view } = structure(UNMAP_DMA_LENGTH);
  view.setUint32(0, UNMAP_DMA_LENGTH, true);
  view.setUint32(4, flags, true);
  writeU64(view, 8, iova);
  writeU64(view, 16, size);
  return bytes;
}

/** Bytes that were unmapped. */
export function decodeUnmapped(bytes: Uint8Array): number {
  return readU64(viewOf(bytes), 16);
}

export interface IovaRange {
  readonly start: number;
  /** The last address, included; what lies beyond 2^53 is cut off. */
  readonly last: number;
}

export interface IommuInfo {
  /** The length that the whole answer has; ask again with as much when it is more than was given. */
  readonly argsz: number;
  /** Sizes of pages, as a set of bits. */
  readonly pageSizes: bigint;
  readonly iovaRanges: readonly IovaRange[];
  /** How many more mappings there may be; undefined where the kernel does not say. */
  readonly dmaAvailable: number | undefined;
}

export function encodeIommuInfo(length: number = IOMMU_INFO_LENGTH): Uint8Array {
  const { bytes, view } = structure(length);
  view.setUint32(0, length, true);
  return bytes;
}

/** @throws RequestError EPROTO when the capabilities leave the structure */
export function decodeIommuInfo(bytes: Uint8Array): IommuInfo {
  const view = viewOf(bytes);
  const argsz = view.getUint32(0, true);
  const flags = view.getUint32(4, true);
  const iovaRanges: IovaRange[] = [];
  let dmaAvailable: number | undefined;
  const first = (flags & IommuInfoFlag.CAPS) !== 0 && argsz <= bytes.length ? view.getUint32(16, true) : 0;
  for (const { id, at } of capabilities(view, first)) {
    if (id === IommuCapability.DMA_AVAIL) dmaAvailable = view.getUint32(at, true);
    if (id !== IommuCapability.IOVA_RANGE) continue;
    const count = Math.min(view.getUint32(at, true), Math.floor((bytes.length - at - 8) / 16));
    for (let index = 0; index < count; index++) iovaRanges.push(decodeIovaRange(view, at + 8 + 16 * index));
  }
  return { argsz, pageSizes: view.getBigUint64(8, true), iovaRanges, dmaAvailable };
}

/** start u64, last u64. */
export function decodeIovaRange(view: DataView, at: number): IovaRange {
  return { start: cut(view.getBigUint64(at, true)), last: cut(view.getBigUint64(at + 8, true)) };
}

/** An address that others are compared with, and nothing else. */
function cut(value: bigint): number {
  return value > BigInt(Number.MAX_SAFE_INTEGER) ? Number.MAX_SAFE_INTEGER : Number(value);
}

export function structure(length: number): { bytes: Uint8Array; view: DataView } {
  const bytes = new Uint8Array(length);
  return { bytes, view: viewOf(bytes) };
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
