// SPDX-License-Identifier: Apache-2.0
/**
 * DMA_MAP, DMA_UNMAP and the transfers DMA_READ, DMA_WRITE. Payload layouts, offsets after the header:
 *
 *     DMA_MAP    argsz u32, flags u32, offset u64, address u64, size u64                  (32)
 *     DMA_UNMAP  argsz u32, flags u32, address u64, size u64                              (24)
 *     DMA_READ   address u64, count u64          reply: the same, then the data           (16)
 *     DMA_WRITE  address u64, count u64, data    reply: address u64, count u64            (16)
 *
 * The first QEMUs with vfio-user (not 11.1 any more) lay DMA_READ and DMA_WRITE out with a u32 count, data at 12, and
 * four bytes of padding behind the data; `CountWidth` names the two dialects.
 */

import { readU64, requireBytes, writeU64 } from './reader.js';

export const DMA_MAP_LENGTH = 32;
export const DMA_UNMAP_LENGTH = 24;

export interface DmaMapRequest {
  flags: number;
  /** File offset in the passed fd, bytes. */
  offset: number;
  /** IOVA. */
  address: number;
  size: number;
}

export function decodeDmaMap(view: DataView, at: number, end: number): DmaMapRequest {
  requireBytes(view, at, end, DMA_MAP_LENGTH, 'DMA_MAP');
  return {
    flags: view.getUint32(at + 4, true),
    offset: readU64(view, at + 8),
    address: readU64(view, at + 16),
    size: readU64(view, at + 24),
  };
}

export function encodeDmaMap(view: DataView, at: number, request: DmaMapRequest): void {
  view.setUint32(at, DMA_MAP_LENGTH, true);
  view.setUint32(at + 4, request.flags, true);
  writeU64(view, at + 8, request.offset);
  writeU64(view, at + 16, request.address);
  writeU64(view, at + 24, request.size);
}

export interface DmaUnmapRequest {
  flags: number;
  address: number;
  size: number;
}

export function decodeDmaUnmap(view: DataView, at: number, end: number): DmaUnmapRequest {
  requireBytes(view, at, end, DMA_UNMAP_LENGTH, 'DMA_UNMAP');
  return {
    flags: view.getUint32(at + 4, true),
    address: readU64(view, at + 8),
    size: readU64(view, at + 16),
  };
}

export function encodeDmaUnmap(view: DataView, at: number, request: DmaUnmapRequest): void {
  view.setUint32(at, DMA_UNMAP_LENGTH, true);
  view.setUint32(at + 4, request.flags, true);
  writeU64(view, at + 8, request.address);
  writeU64(view, at + 16, request.size);
}

/** Width of `count` in DMA_READ and DMA_WRITE: 64 bits as specified, 32 as QEMU first had it. */
export type CountWidth = 32 | 64;

/** Bytes before the data in a DMA_READ or DMA_WRITE payload. */
export function dmaTransferHeaderLength(width: CountWidth): number {
  return width === 64 ? 16 : 12;
}

export interface DmaTransfer {
  address: number;
  count: number;
}

export function decodeDmaTransfer(view: DataView, at: number, end: number, width: CountWidth): DmaTransfer {
  requireBytes(view, at, end, dmaTransferHeaderLength(width), 'DMA transfer');
  return {
    address: readU64(view, at),
    count: width === 64 ? readU64(view, at + 8) : view.getUint32(at + 8, true),
  };
}

export function encodeDmaTransfer(
  view: DataView,
  at: number,
  transfer: DmaTransfer,
  width: CountWidth,
): void {
  writeU64(view, at, transfer.address);
  if (width === 64) writeU64(view, at + 8, transfer.count);
  else view.setUint32(at + 8, transfer.count, true);
}

/** Index of the first of the ranges, which are in order of address, that begins after `address`. */
export function indexAfter(ranges: readonly { readonly address: number }[], address: number): number {
  let low = 0;
  let high = ranges.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (ranges[middle]!.address <= address) low = middle + 1;
    else high = middle;
  }
  return low;
}
