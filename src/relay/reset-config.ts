// SPDX-License-Identifier: Apache-2.0
/**
 * The config space of a device that was just reset, for a VMM that looks at it while another one has the device: its
 * writes stay here, and BARs tell their sizes.
 */

import { PciRegion } from '../wire/index.js';
import type { Identity } from './identity.js';

const HEADER_LENGTH = 0x40;
const BAR0 = 0x10;
const BARS = 6;
const ROM = 0x30;
const BAR_IO = 0x01;
const BAR_64 = 0x04;
/** Registers of the header that can be written as they are: command, cache line size and latency timer, interrupt line. */
const PLAIN: readonly [offset: number, length: number][] = [
  [0x04, 2],
  [0x0c, 2],
  [0x3c, 1],
];

export class ResetConfig {
  readonly #initial: Uint8Array;
  readonly #sizes: readonly number[];
  #bytes: Uint8Array;

  /** @param live the whole config space as it is; `identity` says what its beginning is after a reset */
  constructor(live: Uint8Array, { config, regions }: Identity) {
    this.#initial = live.slice();
    this.#initial.set(config.subarray(0, live.length));
    this.#sizes = regions.map(({ size }) => size);
    const view = new DataView(this.#initial.buffer);
    // What firmware and driver have put there is gone after a reset.
    if (view.byteLength >= HEADER_LENGTH) view.setUint16(0x04, 0, true);
    this.#bytes = this.#initial.slice();
    for (let bar = 0; bar < BARS; bar++) this.#writeBar(bar, 0);
    this.#initial.set(this.#bytes);
  }

  get length(): number {
    return this.#bytes.length;
  }

  reset(): void {
    this.#bytes = this.#initial.slice();
  }

  read(offset: number, length: number): Uint8Array {
    return this.#bytes.slice(offset, offset + length);
  }

  write(offset: number, data: Uint8Array): void {
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    const bar = (offset - BAR0) / 4;
    if (offset < HEADER_LENGTH && data.length === 4 && Number.isInteger(bar) && bar >= 0 && bar < BARS)
      this.#writeBar(bar, view.getUint32(0, true));
    else if (offset === ROM && data.length === 4) this.#writeRom(view.getUint32(0, true));
    else
      for (let i = 0; i < data.length && offset + i < this.#bytes.length; i++)
        if (isPlain(offset + i)) this.#bytes[offset + i] = data[i] ?? 0;
  }

  #writeBar(bar: number, value: number): void {
    const at = BAR0 + 4 * bar;
    if (at + 4 > this.#bytes.length) return;
    const view = new DataView(this.#bytes.buffer);
    const below = bar === 0 ? 0 : view.getUint32(at - 4, true);
    const isUpper =
      (below & (BAR_IO | BAR_64)) === BAR_64 && (this.#sizes[PciRegion.BAR0 + bar - 1] ?? 0) > 0;
    const size = this.#sizes[PciRegion.BAR0 + bar] ?? 0;
    if (isUpper) {
      const high = Math.floor((this.#sizes[PciRegion.BAR0 + bar - 1] ?? 0) / 2 ** 32);
      view.setUint32(at, (value & ~Math.max(high - 1, 0)) >>> 0, true);
      return;
    }
    const type = view.getUint32(at, true) & ((view.getUint32(at, true) & BAR_IO) !== 0 ? 0x3 : 0xf);
    const mask = size === 0 ? 0 : ~(Math.min(size, 2 ** 32) - 1);
    view.setUint32(at, (((value & mask) >>> 0) | type) >>> 0, true);
  }

  #writeRom(value: number): void {
    const size = this.#sizes[PciRegion.ROM] ?? 0;
    if (ROM + 4 > this.#bytes.length) return;
    const mask = size === 0 ? 0 : ~(size - 1) | 1;
    new DataView(this.#bytes.buffer).setUint32(ROM, (value & mask) >>> 0, true);
  }
}

/** Capabilities keep what is written, but for their headers' sake nothing hangs on it: what follows reads its own. */
function isPlain(offset: number): boolean {
  if (offset >= HEADER_LENGTH) return true;
  return PLAIN.some(([start, length]) => offset >= start && offset < start + length);
}
