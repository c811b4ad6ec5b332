// SPDX-License-Identifier: Apache-2.0
/** A buffer in guest memory, made of pages from anywhere, and how NVMe addresses it: PRP entries and PRP lists. */

import { writeU64 } from '../wire/index.js';
import { PAGE_SIZE, type PageAllocator } from './page-allocator.js';
import type { GuestRam } from './ram.js';

/** Who knows where the guest's memory is at present: that changes when the guest is migrated. */
export interface MemoryOwner {
  readonly machine: { readonly ram: GuestRam; readonly pages: PageAllocator };
}

export class DmaBuffer {
  readonly #owner: MemoryOwner;
  /** Guest-physical addresses of the pages. */
  readonly pages: readonly number[];
  /** Where the buffer begins in its first page. */
  readonly offset: number;
  /** Bytes. */
  readonly length: number;

  private constructor(owner: MemoryOwner, pages: readonly number[], offset: number, length: number) {
    this.#owner = owner;
    this.pages = pages;
    this.offset = offset;
    this.length = length;
  }

  /** @param offset in the first page, a multiple of 4. @throws DEVSTATE_E_GUEST_MEMORY */
  static allocate(owner: MemoryOwner, length: number, offset = 0): DmaBuffer {
    if (length < 1 || offset < 0 || offset >= PAGE_SIZE || offset % 4 !== 0) {
      throw new RangeError(`DMA buffer of ${length} bytes at ${offset} of a page`);
    }
    const pages = owner.machine.pages.allocate(Math.ceil((offset + length) / PAGE_SIZE));
    return new DmaBuffer(owner, pages, offset, length);
  }

  /** A part of the buffer, which shares its pages (and is not freed itself). */
  slice(start: number, length: number): DmaBuffer {
    if (start < 0 || length < 1 || start + length > this.length) {
      throw new RangeError(`bytes ${start}+${length} of a DMA buffer of ${this.length}`);
    }
    const from = this.offset + start;
    const first = Math.floor(from / PAGE_SIZE);
    const pages = this.pages.slice(first, Math.ceil((from + length) / PAGE_SIZE));
    return new DmaBuffer(this.#owner, pages, from % PAGE_SIZE, length);
  }

  /** Writes into the buffer, as the guest's program. */
  fill(source: Uint8Array, at = 0): void {
    const { ram } = this.#owner.machine;
    this.#pieces(at, source.length, (address, done, length) => {
      ram.at(address, length).set(source.subarray(done, done + length));
      ram.touch(address, length);
    });
  }

  /** Copies out of the buffer. */
  read(target: Uint8Array, at = 0): void {
    const { ram } = this.#owner.machine;
    this.#pieces(at, target.length, (address, done, length) => target.set(ram.at(address, length), done));
  }

  /** The whole content. */
  bytes(): Uint8Array {
    const copy = new Uint8Array(this.length);
    this.read(copy);
    return copy;
  }

  #pieces(at: number, length: number, visit: (address: number, done: number, length: number) => void): void {
    if (at < 0 || at + length > this.length)
      throw new RangeError(`bytes ${at}+${length} of a DMA buffer of ${this.length}`);
    for (let done = 0; done < length; ) {
      const position = this.offset + at + done;
      const inPage = position % PAGE_SIZE;
      const step = Math.min(length - done, PAGE_SIZE - inPage);
      visit(this.pages[Math.floor(position / PAGE_SIZE)]! + inPage, done, step);
      done += step;
    }
  }

  /** Gives the pages back. No command may be using them. */
  free(): void {
    this.#owner.machine.pages.free(this.pages);
  }
}

/** The data pointer of a command, and the pages of PRP lists to free when it has ended. */
export interface DataPointer {
  readonly prp1: number;
  readonly prp2: number;
  readonly lists: readonly number[];
}

const NO_LISTS: readonly number[] = [];
const ENTRIES_PER_LIST = PAGE_SIZE / 8;

/** Describes a buffer by PRPs (NVMe 1.4, section 4.3): lists of 512 entries, the last of which leads to the next list. */
export function describeByPrps(buffer: DmaBuffer, ram: GuestRam, allocator: PageAllocator): DataPointer {
  const { pages } = buffer;
  const prp1 = pages[0]! + buffer.offset;
  if (pages.length <= 2) return { prp1, prp2: pages[1] ?? 0, lists: NO_LISTS };
  const entries = pages.length - 1;
  // Every list but the last holds one entry less, because its last one is the chain.
  const lists = allocator.allocate(Math.max(1, Math.ceil((entries - 1) / (ENTRIES_PER_LIST - 1))));
  let next = 1;
  lists.forEach((list, i) => {
    const chained = lists[i + 1];
    const room = chained === undefined ? ENTRIES_PER_LIST : ENTRIES_PER_LIST - 1;
    const start = ram.offset(list, PAGE_SIZE);
    let slot = 0;
    for (; slot < room && next < pages.length; slot++) writeU64(ram.view, start + 8 * slot, pages[next++]!);
    if (chained !== undefined) writeU64(ram.view, start + 8 * slot, chained);
    ram.touch(list, PAGE_SIZE);
  });
  return { prp1, prp2: lists[0]!, lists };
}
