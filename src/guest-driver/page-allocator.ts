// SPDX-License-Identifier: Apache-2.0
/** Which pages of guest memory are in use. */

import { DevstateError } from '../errors.js';

export const PAGE_SIZE = 4096;

export class PageAllocator {
  /** Freed single pages, taken again last in first out: buffers soon consist of scattered pages, as in a real guest. */
  readonly #free: number[] = [];
  #next: number;
  readonly #end: number;

  /** Manages [address, address + length), whole pages. */
  constructor(address: number, length: number) {
    this.#next = address;
    this.#end = address + length;
  }

  /** Address of the first of `count` pages that follow each other; they are never freed. @throws DEVSTATE_E_GUEST_MEMORY */
  contiguous(count: number): number {
    const address = this.#next;
    if (address + count * PAGE_SIZE > this.#end) {
      throw new DevstateError(
        'DEVSTATE_E_GUEST_MEMORY',
        `the built-in guest has no ${count} pages left; give it more memory or free buffers`,
      );
    }
    this.#next += count * PAGE_SIZE;
    return address;
  }

  /** Addresses of `count` pages from anywhere. @throws DEVSTATE_E_GUEST_MEMORY */
  allocate(count: number): number[] {
    const pages: number[] = [];
    try {
      while (pages.length < count) pages.push(this.#free.pop() ?? this.contiguous(1));
    } catch (error) {
      this.free(pages);
      throw error;
    }
    return pages;
  }

  free(pages: readonly number[]): void {
    this.#free.push(...pages);
  }
}
