// SPDX-License-Identifier: Apache-2.0
/**
 * Where a command's data are: PRP1 and PRP2 (NVMe 1.4, section 4.3) resolved to segments of guest memory.
 *
 * A resolver that touches no memory: it says which list it needs next, is fed the bytes, and continues. So one piece of
 * code serves memory that is mapped and memory that is asked for by messages.
 */

import type { MemoryRange } from '../../../device/index.js';
import { MIN_PAGE_SIZE, Status } from '../spec/index.js';

const LIST_ENTRY = 8;

export class DataPointer {
  /** `Status.SUCCESS` unless the pointer is wrong. */
  status: number = Status.SUCCESS;
  readonly #addresses: number[] = [];
  readonly #lengths: number[] = [];
  /** Bytes of data whose pages are not known yet. */
  #rest = 0;
  #pageSize = MIN_PAGE_SIZE;
  #list = 0;
  #listEntries = 0;

  /** Begins with another command. @param length bytes of its data, at least 1 */
  start(prp1: number, prp2: number, length: number, pageSize: number): void {
    this.status = Status.SUCCESS;
    this.#addresses.length = 0;
    this.#lengths.length = 0;
    this.#pageSize = pageSize;
    this.#listEntries = 0;
    const offset = prp1 % pageSize;
    this.#rest = length;
    if (offset % 4 !== 0) {
      this.#fail(Status.PRP_OFFSET_INVALID);
      return;
    }
    this.#add(prp1, Math.min(length, pageSize - offset));
    if (this.#rest === 0) return;
    if (this.#rest > pageSize) this.#follow(prp2, LIST_ENTRY);
    else if (prp2 % pageSize !== 0) this.#fail(Status.PRP_OFFSET_INVALID);
    else this.#add(prp2, this.#rest);
  }

  /** Segments found so far, adjacent pages joined. */
  get count(): number {
    return this.#addresses.length;
  }

  /** Where the bytes are that `feed` needs next. */
  get listAddress(): number {
    return this.#list;
  }

  /** How many bytes `feed` needs next; 0 when everything is known, or wrong. */
  get listLength(): number {
    return this.#listEntries * LIST_ENTRY;
  }

  /** Takes `listLength` bytes from `listAddress`. */
  feed(bytes: Uint8Array): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const entries = this.#listEntries;
    // With more pages to come than the list has entries, its last entry is the next list.
    const pages = entries < Math.ceil(this.#rest / this.#pageSize) ? entries - 1 : entries;
    this.#listEntries = 0;
    for (let index = 0; index < pages; index++) {
      const page = entryAt(view, index);
      if (page % this.#pageSize !== 0) {
        this.#fail(Status.PRP_OFFSET_INVALID);
        return;
      }
      this.#add(page, Math.min(this.#rest, this.#pageSize));
      if (this.status !== Status.SUCCESS) return;
    }
    if (pages < entries) this.#follow(entryAt(view, pages), this.#pageSize);
  }

  address(index: number): number {
    return this.#addresses[index]!;
  }

  length(index: number): number {
    return this.#lengths[index]!;
  }

  /** The segments, for callers that keep them longer than the pointer. */
  ranges(): MemoryRange[] {
    const ranges: MemoryRange[] = [];
    for (let i = 0; i < this.count; i++) ranges.push({ address: this.address(i), length: this.length(i) });
    return ranges;
  }

  #follow(list: number, alignment: number): void {
    if (list % alignment !== 0) {
      this.#fail(Status.PRP_OFFSET_INVALID);
      return;
    }
    if (!Number.isSafeInteger(list)) {
      this.#fail(Status.DATA_TRANSFER_ERROR);
      return;
    }
    const room = (this.#pageSize - (list % this.#pageSize)) / LIST_ENTRY;
    this.#list = list;
    this.#listEntries = Math.min(room, Math.ceil(this.#rest / this.#pageSize));
  }

  #add(address: number, length: number): void {
    if (!Number.isSafeInteger(address + length)) {
      this.#fail(Status.DATA_TRANSFER_ERROR);
      return;
    }
    this.#rest -= length;
    const last = this.count - 1;
    if (last >= 0 && this.#addresses[last]! + this.#lengths[last]! === address)
      this.#lengths[last]! += length;
    else {
      this.#addresses.push(address);
      this.#lengths.push(length);
    }
  }

  #fail(status: number): void {
    this.status = status;
    this.#rest = 0;
    this.#listEntries = 0;
  }
}

function entryAt(list: DataView, index: number): number {
  return list.getUint32(index * LIST_ENTRY, true) + list.getUint32(index * LIST_ENTRY + 4, true) * 2 ** 32;
}
