// SPDX-License-Identifier: Apache-2.0
/**
 * DIRTY_PAGES of vfio-user 0.9.1, and the bitmap of a DMA_UNMAP: how a client of migration v1 learns what a device wrote.
 *
 *     DIRTY_PAGES  argsz u32, flags u32 (START, STOP or GET_BITMAP), with GET_BITMAP then
 *                  iova u64, size u64, bitmap page size u64, bitmap size u64   reply: the same, then the bitmap
 *     DMA_UNMAP    … as ever (24), then with GET_DIRTY_BITMAP
 *                  bitmap page size u64, bitmap size u64                       reply: the same, then the bitmap
 *
 * The specification's text puts the bitmap at 48; its structures, and everybody's code, at 40. A request's argsz is the
 * longest payload that its sender takes; a reply's the one it takes to answer.
 */

import { DMA_UNMAP_LENGTH } from './dma.js';
import { Errno, RequestError } from './errno.js';
import { type DmaRange, dirtyBitmapLength } from './feature.js';
import { readU64, requireBytes, writeU64 } from './reader.js';

/** `VFIO_IOMMU_DIRTY_PAGES_FLAG_*`: exactly one. */
export const DirtyPagesFlag = { START: 1, STOP: 2, GET_BITMAP: 4 } as const;

/** Without a range. */
export const DIRTY_PAGES_LENGTH = 8;
/** What stands before the bitmap: in DIRTY_PAGES with a range, and in DMA_UNMAP. */
export const DIRTY_BITMAP_OFFSET = 40;

/** The description of a bitmap (`struct vfio_bitmap`) and what it is of. */
export interface DirtyBitmapRange extends DmaRange {
  pageSize: number;
  /** Bytes of the bitmap, as many as the range needs or more. */
  bitmapLength: number;
}

export interface DirtyPagesRequest {
  argsz: number;
  flags: number;
  /** With GET_BITMAP. */
  range?: DirtyBitmapRange;
}

export function decodeDirtyPages(view: DataView, at: number, end: number): DirtyPagesRequest {
  requireBytes(view, at, end, DIRTY_PAGES_LENGTH, 'DIRTY_PAGES');
  const request = { argsz: view.getUint32(at, true), flags: view.getUint32(at + 4, true) };
  if (request.flags !== DirtyPagesFlag.GET_BITMAP) return request;
  requireBytes(view, at, end, DIRTY_BITMAP_OFFSET, 'DIRTY_PAGES GET_BITMAP');
  const [iova, length] = [readU64(view, at + 8), readU64(view, at + 16)];
  return { ...request, range: { iova, length, ...decodeBitmap(view, at + 24) } };
}

export function encodeDirtyPages(view: DataView, at: number, request: DirtyPagesRequest): void {
  view.setUint32(at, request.argsz, true);
  view.setUint32(at + 4, request.flags, true);
  if (request.range === undefined) return;
  writeU64(view, at + 8, request.range.iova);
  writeU64(view, at + 16, request.range.length);
  encodeBitmap(view, at + 24, request.range);
}

/** The bitmap that a DMA_UNMAP asks for; `at` is where its payload begins. */
export function decodeUnmapBitmap(view: DataView, at: number, end: number): DirtyBitmapRange {
  requireBytes(view, at, end, DIRTY_BITMAP_OFFSET, 'DMA_UNMAP GET_DIRTY_BITMAP');
  const [iova, length] = [readU64(view, at + 8), readU64(view, at + 16)];
  return { iova, length, ...decodeBitmap(view, at + DMA_UNMAP_LENGTH) };
}

/** The other half of a DMA_UNMAP, whose first is `encodeDmaUnmap`. */
export function encodeUnmapBitmap(view: DataView, at: number, argsz: number, range: DirtyBitmapRange): void {
  view.setUint32(at, argsz, true);
  encodeBitmap(view, at + DMA_UNMAP_LENGTH, range);
}

function decodeBitmap(view: DataView, at: number): { pageSize: number; bitmapLength: number } {
  return { pageSize: readU64(view, at), bitmapLength: readU64(view, at + 8) };
}

function encodeBitmap(view: DataView, at: number, { pageSize, bitmapLength }: DirtyBitmapRange): void {
  writeU64(view, at, pageSize);
  writeU64(view, at + 8, bitmapLength);
}

/**
 * Checks a bitmap's description: a range of whole pages, and room for a bit of each.
 * @param pageSize the one size of pages that is logged by
 * @throws RequestError EINVAL
 */
export function requireDirtyBitmap(range: DirtyBitmapRange, pageSize: number): void {
  const { iova, length, bitmapLength } = range;
  if (range.pageSize !== pageSize)
    throw new RequestError(Errno.EINVAL, `a bitmap of pages of ${range.pageSize} bytes, not ${pageSize}`);
  if (length === 0 || iova % pageSize !== 0 || length % pageSize !== 0)
    throw new RequestError(
      Errno.EINVAL,
      `a bitmap of ${length} bytes at 0x${iova.toString(16)}: no whole pages`,
    );
  if (!Number.isSafeInteger(iova + length))
    throw new RequestError(Errno.EINVAL, 'the range of a bitmap overflows');
  const needed = dirtyBitmapLength(length, pageSize);
  if (bitmapLength < needed || bitmapLength % 8 !== 0)
    throw new RequestError(Errno.EINVAL, `a bitmap of ${bitmapLength} bytes where ${needed} are needed`);
}
