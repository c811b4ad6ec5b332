// SPDX-License-Identifier: Apache-2.0
/**
 * The guest's memory: a memfd that we map as a VMM does, and that the device server maps through DMA_MAP. Remembers which
 * pages the guest's own program has written, as a hypervisor's dirty log does; of the device's writes only those that
 * it asked for by messages are in it.
 */

import { check, checkObject, MAX_WINDOW_LENGTH, type Mapping, native, Protection } from '../native/index.js';
import { Fd } from '../transport/index.js';
import type { DmaRange } from '../wire/index.js';
import { PAGE_SIZE } from './page-allocator.js';

/** Where the memory begins, in guest-physical addresses: above 4 GiB, so that address bits that get lost are noticed. */
export const RAM_BASE = 0x1_0000_0000;

export class GuestRam {
  readonly base = RAM_BASE;
  readonly length: number;
  readonly fd: Fd;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly #mapping: Mapping;
  /** One byte a page: 1 when the guest has written it since {@link takeTouched}. */
  readonly #touched: Uint8Array;

  /** @param length bytes, whole pages, at most 1 GiB */
  constructor(length: number) {
    if (length <= 0 || length % PAGE_SIZE !== 0 || length > MAX_WINDOW_LENGTH) {
      throw new RangeError(`guest memory of ${length} bytes`);
    }
    this.length = length;
    this.fd = new Fd(check(native.memfdCreate('guest-ram'), 'make guest memory'));
    check(native.truncate(this.fd.number, length), `make ${length} bytes of guest memory`);
    this.#mapping = checkObject(
      native.map(this.fd.number, 0, length, Protection.readWrite),
      `map ${length} bytes of guest memory`,
    );
    const window = checkObject(this.#mapping.window(0, length), 'reach guest memory');
    this.bytes = new Uint8Array(window);
    this.view = new DataView(window);
    this.#touched = new Uint8Array(length / PAGE_SIZE);
  }

  /** Position in `bytes` of a guest-physical address. @throws RangeError outside of the memory */
  offset(address: number, length: number): number {
    const offset = address - this.base;
    if (offset < 0 || offset + length > this.length) {
      throw new RangeError(
        `guest address 0x${address.toString(16)}+${length} is outside of the guest's memory`,
      );
    }
    return offset;
  }

  /** The bytes at an address. Say {@link touch} after writing to them. */
  at(address: number, length: number): Uint8Array {
    const offset = this.offset(address, length);
    return this.bytes.subarray(offset, offset + length);
  }

  /** Notes that the guest's program, or the VMM for the device, wrote there. */
  touch(address: number, length: number): void {
    const offset = this.offset(address, length);
    const last = Math.floor((offset + length - 1) / PAGE_SIZE);
    for (let page = Math.floor(offset / PAGE_SIZE); page <= last; page++) this.#touched[page] = 1;
  }

  /** The pages written by the guest's program since the last call, neighbours merged. */
  takeTouched(): DmaRange[] {
    const ranges: DmaRange[] = [];
    for (let page = this.#touched.indexOf(1); page >= 0; page = this.#touched.indexOf(1, page)) {
      let end = this.#touched.indexOf(0, page);
      if (end < 0) end = this.#touched.length;
      this.#touched.fill(0, page, end);
      ranges.push({ iova: this.base + page * PAGE_SIZE, length: (end - page) * PAGE_SIZE });
      page = end;
    }
    return ranges;
  }

  /** Copies ranges of another memory of the same size; bytes copied. */
  copyFrom(source: GuestRam, ranges: Iterable<DmaRange>): number {
    let total = 0;
    for (const { iova, length } of ranges) {
      this.at(iova, length).set(source.at(iova, length));
      total += length;
    }
    return total;
  }

  /** Unmaps the memory; the device server's own mapping stays until it gets DMA_UNMAP. */
  close(): void {
    this.#mapping.unmap();
    this.fd.close();
  }
}
