// SPDX-License-Identifier: Apache-2.0
/**
 * The MSI-X table and pending bits in their BAR. A VMM emulates the table and never asks for it, so it is memory and no
 * more: vectors are signalled by what SET_IRQS assigned. The pending bits are real.
 */

import { MSIX_ENTRY_SIZE, MSIX_PBA_OFFSET } from '../spec/index.js';

export class MsixTable {
  readonly #table: Uint8Array;

  constructor(readonly vectors: number) {
    this.#table = new Uint8Array(vectors * MSIX_ENTRY_SIZE);
    this.reset();
  }

  read(offset: number, target: Uint8Array, pending: readonly number[]): void {
    for (let i = 0; i < target.length; i++) {
      const at = offset + i;
      target[i] = at < MSIX_PBA_OFFSET ? (this.#table[at] ?? 0) : pendingByte(at - MSIX_PBA_OFFSET, pending);
    }
  }

  write(offset: number, data: Uint8Array): void {
    if (offset < this.#table.length) this.#table.set(data.subarray(0, this.#table.length - offset), offset);
  }

  /** All vectors masked, as after power on. */
  reset(): void {
    this.#table.fill(0);
    for (let at = 12; at < this.#table.length; at += MSIX_ENTRY_SIZE) this.#table[at] = 1;
  }

  save(): Uint8Array {
    return this.#table.slice();
  }

  /** @param table as long as what `save` gives */
  load(table: Uint8Array): void {
    this.#table.set(table);
  }
}

function pendingByte(index: number, pending: readonly number[]): number {
  let byte = 0;
  for (const vector of pending) if (vector >>> 3 === index) byte |= 1 << (vector & 7);
  return byte;
}
