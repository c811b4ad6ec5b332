// SPDX-License-Identifier: Apache-2.0
/** A set of pages, as a sparse bitmap: its size follows what is in it, not how far apart that lies. */

import type { DmaRange } from '../wire/index.js';

/** Pages in one chunk: 4 KiB of bits, 128 MiB of guest memory at 4 KiB pages. */
const CHUNK_PAGES = 2 ** 15;
const CHUNK_WORDS = CHUNK_PAGES / 32;

export class PageBitmap {
  readonly #chunks = new Map<number, Uint32Array>();
  #count = 0;

  /** Pages in the set. */
  get count(): number {
    return this.#count;
  }

  /** Adds pages `first` to `last`. */
  add(first: number, last: number): void {
    for (let page = first; page <= last; page++) {
      const index = Math.floor(page / CHUNK_PAGES);
      let chunk = this.#chunks.get(index);
      if (chunk === undefined) {
        chunk = new Uint32Array(CHUNK_WORDS);
        this.#chunks.set(index, chunk);
      }
      const bit = page % CHUNK_PAGES;
      const word = chunk[bit >>> 5]!;
      const mask = 1 << (bit & 31);
      if ((word & mask) !== 0) continue;
      chunk[bit >>> 5] = word | mask;
      this.#count++;
    }
  }

  /** Calls `found` for each page of the set from `first` to `last`, and removes it if that returns true. */
  visit(first: number, last: number, found: (page: number) => boolean): void {
    const firstChunk = Math.floor(first / CHUNK_PAGES);
    const lastChunk = Math.floor(last / CHUNK_PAGES);
    for (const [index, chunk] of this.#chunks) {
      if (index < firstChunk || index > lastChunk) continue;
      const base = index * CHUNK_PAGES;
      this.#visitChunk(chunk, base, Math.max(first - base, 0), Math.min(last - base, CHUNK_PAGES - 1), found);
      if (chunk.every((word) => word === 0)) this.#chunks.delete(index);
    }
  }

  #visitChunk(
    chunk: Uint32Array,
    base: number,
    first: number,
    last: number,
    found: (page: number) => boolean,
  ): void {
    for (let word = first >>> 5; word <= last >>> 5; word++) {
      let bits = chunk[word]!;
      if (word === first >>> 5) bits &= -1 << (first & 31);
      if (word === last >>> 5 && (last & 31) !== 31) bits &= (1 << ((last & 31) + 1)) - 1;
      while (bits !== 0) {
        const lowest = bits & -bits;
        bits &= bits - 1;
        if (!found(base + word * 32 + 31 - Math.clz32(lowest))) continue;
        chunk[word]! &= ~lowest;
        this.#count--;
      }
    }
  }

  /** The set as ranges of memory in order of address, neighbouring pages of `pageSize` bytes merged. */
  ranges(pageSize: number): DmaRange[] {
    const ranges: { iova: number; length: number }[] = [];
    for (const index of [...this.#chunks.keys()].sort((a, b) => a - b)) {
      const base = index * CHUNK_PAGES;
      this.#visitChunk(this.#chunks.get(index)!, base, 0, CHUNK_PAGES - 1, (page) => {
        const last = ranges.at(-1);
        if (last !== undefined && last.iova + last.length === page * pageSize) last.length += pageSize;
        else ranges.push({ iova: page * pageSize, length: pageSize });
        return false;
      });
    }
    return ranges;
  }
}
