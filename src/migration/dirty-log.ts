// SPDX-License-Identifier: Apache-2.0
/** The log of pages that the device has written (DMA_LOGGING_*). */

import { setImmediate } from 'node:timers/promises';
import { type DmaRange, dirtyBitmapLength, Errno, isPowerOfTwo, RequestError } from '../wire/index.js';
import { PageBitmap } from './page-bitmap.js';

/** Finest page size that we log at, and the default. */
export const MIN_LOG_PAGE_SIZE = 4096;
const MAX_LOG_PAGE_SIZE = 2 ** 30;
/** Largest bitmap that one report may ask for, bytes: 256 MiB, QEMU's own bound. */
const MAX_BITMAP_LENGTH = 2 ** 28;
/** Pages of the log that are reported at another page size before others have a turn: 4 ms of work at most. */
const TURN_PAGES = 2 ** 17;

export class DirtyLog {
  readonly pageSize: number;
  readonly #ranges: readonly DmaRange[];
  readonly #pages = new PageBitmap();

  /**
   * @param pageSize the hint of DMA_LOGGING_START; the size in force is `this.pageSize`
   * @param ranges what to log; empty for everything
   * @throws RequestError EINVAL for a page size that is no power of two, or ranges that overlap, overflow or are not aligned
   */
  constructor(pageSize: number, ranges: readonly DmaRange[]) {
    requirePageSize(pageSize);
    this.pageSize = Math.min(Math.max(pageSize, MIN_LOG_PAGE_SIZE), MAX_LOG_PAGE_SIZE);
    this.#ranges = ranges.slice().sort((a, b) => a.iova - b.iova);
    let end = 0;
    for (const { iova, length } of this.#ranges) {
      if (length === 0 || iova % this.pageSize !== 0 || length % this.pageSize !== 0) {
        throw new RequestError(
          Errno.EINVAL,
          `logging range 0x${iova.toString(16)}+${length} is not whole pages`,
        );
      }
      if (!Number.isSafeInteger(iova + length))
        throw new RequestError(Errno.EOVERFLOW, 'logging range overflows');
      if (iova < end) throw new RequestError(Errno.EINVAL, 'logging ranges overlap');
      end = iova + length;
    }
  }

  /** Records a write of `length` bytes at `address`. */
  mark(address: number, length: number): void {
    if (length === 0) return;
    if (this.#ranges.length === 0) {
      this.#pages.add(
        Math.floor(address / this.pageSize),
        Math.floor((address + length - 1) / this.pageSize),
      );
      return;
    }
    const end = address + length;
    for (let i = this.#firstBehind(address); i < this.#ranges.length; i++) {
      const range = this.#ranges[i]!;
      if (range.iova >= end) return;
      const from = Math.max(address, range.iova);
      const to = Math.min(end, range.iova + range.length);
      this.#pages.add(Math.floor(from / this.pageSize), Math.floor((to - 1) / this.pageSize));
    }
  }

  /** Index of the first range that ends behind `address`: there may be thousands, and every write of the device asks. */
  #firstBehind(address: number): number {
    let low = 0;
    let high = this.#ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const { iova, length } = this.#ranges[middle]!;
      if (iova + length > address) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  /**
   * Writes the bitmap of [iova, iova + length) into `bitmap` (cleared first), a bit for each `pageSize` bytes, least
   * significant first, and forgets the pages that lie in the range as a whole: of a page reported in part, the rest has
   * still to be told. A promise where others have a turn meanwhile, which a report at the log's own page size never needs.
   * @throws RequestError EINVAL, EOVERFLOW or E2BIG for an impossible range or page size
   */
  report(iova: number, length: number, pageSize: number, bitmap: Uint8Array): void | Promise<void> {
    requireReport(iova, length, pageSize);
    bitmap.fill(0);
    // Whole bytes of the bitmap, and whole pages of the log.
    const unit = Math.max(8 * pageSize, this.pageSize);
    const step = Math.ceil((TURN_PAGES * this.pageSize) / unit) * unit;
    if ((pageSize === this.pageSize && iova % pageSize === 0) || length <= step)
      return this.#report(iova, length, pageSize, bitmap);
    if (iova % this.pageSize !== 0) {
      const message = `dirty report of ${length} bytes from within a page of ${this.pageSize}: ask for less at a time`;
      throw new RequestError(Errno.E2BIG, message);
    }
    return this.#reportInTurns(iova, length, pageSize, bitmap, step);
  }

  async #reportInTurns(
    iova: number,
    length: number,
    pageSize: number,
    bitmap: Uint8Array,
    step: number,
  ): Promise<void> {
    for (let at = 0; at < length; at += step) {
      if (at > 0) await setImmediate();
      this.#report(iova + at, Math.min(step, length - at), pageSize, bitmap.subarray(at / pageSize / 8));
    }
  }

  /** 32 pages at a time, because a guest decides how many millions are dirty. */
  #report(iova: number, length: number, pageSize: number, bitmap: Uint8Array): void {
    const size = this.pageSize;
    const firstPage = Math.floor(iova / size);
    const lastPage = Math.floor((iova + length - 1) / size);
    // The pages of the log that lie in the range in part.
    const parts = [firstPage, lastPage].filter(
      (page) => page * size < iova || (page + 1) * size > iova + length,
    );
    const isSame = pageSize === size && iova % size === 0;
    this.#pages.visitWords(firstPage, lastPage, (page, bits) => {
      if (isSame) setWord(bitmap, page - firstPage, bits);
      else setPages(bitmap, { iova, length, pageSize, page, bits, size });
      let forgotten = bits;
      for (const part of parts) if (part >= page && part < page + 32) forgotten &= ~(1 << (part - page));
      return forgotten;
    });
  }
}

function requirePageSize(pageSize: number): void {
  if (!isPowerOfTwo(pageSize)) {
    throw new RequestError(Errno.EINVAL, `page size ${pageSize} is not a power of two`);
  }
}

function requireReport(iova: number, length: number, pageSize: number): void {
  requirePageSize(pageSize);
  if (length === 0) throw new RequestError(Errno.EINVAL, 'dirty report of nothing');
  if (!Number.isSafeInteger(iova + length)) {
    throw new RequestError(Errno.EOVERFLOW, `dirty report of ${length} bytes at 0x${iova.toString(16)}`);
  }
  if (dirtyBitmapLength(length, pageSize) > MAX_BITMAP_LENGTH) {
    throw new RequestError(Errno.E2BIG, `dirty report of ${length} bytes: ask for less at a time`);
  }
}

/** Sets the report's bits for the pages of the log, `size` bytes each, that a word has from `page` on. */
function setPages(
  bitmap: Uint8Array,
  report: { iova: number; length: number; pageSize: number; page: number; bits: number; size: number },
): void {
  const { iova, length, pageSize, page, bits, size } = report;
  const first = page + 31 - Math.clz32(bits & -bits);
  const last = page + 31 - Math.clz32(bits);
  const from = Math.floor(Math.max(first * size - iova, 0) / pageSize);
  const to = Math.floor((Math.min((last + 1) * size - iova, length) - 1) / pageSize);
  if (from === to) {
    bitmap[from >>> 3]! |= 1 << (from & 7);
    return;
  }
  for (let rest = bits; rest !== 0; rest &= rest - 1) {
    const at = page + 31 - Math.clz32(rest & -rest);
    setBits(bitmap, iova, length, pageSize, at * size, size);
  }
}

/** Sets the report's bits for one dirty page of the log, clipped to the report's range. */
function setBits(
  bitmap: Uint8Array,
  iova: number,
  length: number,
  pageSize: number,
  start: number,
  size: number,
): void {
  const from = Math.max(start - iova, 0);
  const to = Math.min(start + size - iova, length);
  const end = Math.ceil(to / pageSize);
  let bit = Math.floor(from / pageSize);
  for (; bit < end && (bit & 7) !== 0; bit++) bitmap[bit >>> 3]! |= 1 << (bit & 7);
  if (end - bit >= 8) {
    bitmap.fill(0xff, bit >>> 3, end >>> 3);
    bit = end & ~7;
  }
  for (; bit < end; bit++) bitmap[bit >>> 3]! |= 1 << (bit & 7);
}

/** Sets 32 bits of a bitmap from bit `at` on, which is negative where the first ones, not set, lie before it. */
function setWord(bitmap: Uint8Array, at: number, bits: number): void {
  let rest = at < 0 ? bits >>> -at : bits >>> 0;
  const shift = at < 0 ? 0 : at & 7;
  let byte = at < 0 ? 0 : at >>> 3;
  if (shift > 0) {
    bitmap[byte++]! |= (rest << shift) & 0xff;
    rest >>>= 8 - shift;
  }
  for (; rest !== 0; rest >>>= 8) bitmap[byte++]! |= rest & 0xff;
}

/** The dirty ranges that a bitmap describes, neighbouring pages merged. */
export function* dirtyRanges(
  bitmap: Uint8Array,
  iova: number,
  length: number,
  pageSize: number,
): Generator<DmaRange> {
  const pages = Math.ceil(length / pageSize);
  // Most of a bitmap is clean: that is passed over a word at a time, where words are aligned in memory.
  const words =
    bitmap.byteOffset % 4 === 0 ? new Uint32Array(bitmap.buffer, bitmap.byteOffset, bitmap.length >>> 2) : [];
  let start = -1;
  for (let page = 0; page <= pages; page++) {
    if ((page & 7) === 0 && start < 0) {
      while ((page & 31) === 0 && words[page >>> 5] === 0) page += 32;
      if (page > pages) return;
      if (bitmap[page >>> 3] === 0) {
        page += 7; // eight clean pages
        continue;
      }
    }
    const dirty = page < pages && (bitmap[page >>> 3]! & (1 << (page & 7))) !== 0;
    if (dirty && start < 0) start = page;
    else if (!dirty && start >= 0) {
      const from = start * pageSize;
      yield { iova: iova + from, length: Math.min(page * pageSize, length) - from };
      start = -1;
    }
  }
}
