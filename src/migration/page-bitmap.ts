// SPDX-License-Identifier: Apache-2.0
/** A set of pages, as a sparse bitmap: its size follows what is in it, not how far apart that lies. */

import type { DmaRange } from '../wire/index.js';

/** Pages in one chunk: 4 KiB of bits, 128 MiB of guest memory at 4 KiB pages. */
const CHUNK_PAGES = 2 ** 15;
const CHUNK_WORDS = CHUNK_PAGES / 32;

interface Chunk {
  readonly words: Uint32Array;
  /** Pages in it; a chunk that has none is given up. */
  count: number;
}

export class PageBitmap {
  readonly #chunks = new Map<number, Chunk>();
  #count = 0;

  /** Pages in the set. */
  get count(): number {
    return this.#count;
  }

  /** Removes all pages. */
  clear(): void {
    this.#chunks.clear();
    this.#count = 0;
  }

  /** Adds pages `first` to `last`. */
  add(first: number, last: number): void {
    for (let page = first; page <= last; ) {
      const index = Math.floor(page / CHUNK_PAGES);
      const base = index * CHUNK_PAGES;
      let chunk = this.#chunks.get(index);
      if (chunk === undefined) {
        chunk = { words: new Uint32Array(CHUNK_WORDS), count: 0 };
        this.#chunks.set(index, chunk);
      }
      this.#addTo(chunk, page - base, Math.min(last - base, CHUNK_PAGES - 1));
      page = base + CHUNK_PAGES;
    }
  }

  #addTo(chunk: Chunk, first: number, last: number): void {
    const { words } = chunk;
    for (let word = first >>> 5; word <= last >>> 5; word++) {
      const added = maskOf(word, first, last) & ~words[word]!;
      if (added === 0) continue;
      words[word]! |= added;
      const count = bitCount(added);
      chunk.count += count;
      this.#count += count;
    }
  }

  /**
   * Calls `found` for every 32 pages that have one of the set, from `first` to `last`: the number of the first page and a bit
   * for each. It returns the bits of those to remove.
   */
  visitWords(first: number, last: number, found: (page: number, bits: number) => number): void {
    const firstChunk = Math.floor(first / CHUNK_PAGES);
    const lastChunk = Math.floor(last / CHUNK_PAGES);
    for (const [index, chunk] of this.#chunks) {
      if (index < firstChunk || index > lastChunk) continue;
      const base = index * CHUNK_PAGES;
      const from = Math.max(first - base, 0);
      const to = Math.min(last - base, CHUNK_PAGES - 1);
      const { words } = chunk;
      for (let word = from >>> 5; word <= to >>> 5; word++) {
        const bits = words[word]! & maskOf(word, from, to);
        if (bits === 0) continue;
        const removed = found(base + word * 32, bits);
        words[word]! &= ~removed;
        const count = bitCount(removed);
        chunk.count -= count;
        this.#count -= count;
      }
      if (chunk.count === 0) this.#chunks.delete(index);
    }
  }

  #visitChunk(
    chunk: Chunk,
    base: number,
    first: number,
    last: number,
    found: (page: number) => boolean,
  ): void {
    const { words } = chunk;
    for (let word = first >>> 5; word <= last >>> 5; word++) {
      if (words[word] === 0) continue;
      let bits = words[word]! & maskOf(word, first, last);
      while (bits !== 0) {
        const lowest = bits & -bits;
        bits &= bits - 1;
        if (!found(base + word * 32 + 31 - Math.clz32(lowest))) continue;
        words[word]! &= ~lowest;
        chunk.count--;
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

/** The bits of a word that lie between the bits `first` and `last` of its chunk. */
function maskOf(word: number, first: number, last: number): number {
  let mask = -1;
  if (word === first >>> 5) mask &= -1 << (first & 31);
  if (word === last >>> 5) mask &= -1 >>> (31 - (last & 31));
  return mask;
}

/** Bits that are set, counted in pairs, then in fours, then in bytes. */
function bitCount(bits: number): number {
  const pairs = bits - ((bits >>> 1) & 0x55555555);
  const fours = (pairs & 0x33333333) + ((pairs >>> 2) & 0x33333333);
  return Math.imul((fours + (fours >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
