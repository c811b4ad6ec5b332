// SPDX-License-Identifier: Apache-2.0
/** Fills an image with values from elsewhere: what does not fit its field is noted by name, and nothing is cut off. */

import type { ControllerImage } from './controller-image.js';
import { refused } from './refused.js';

/** Reasons that are reported; a hostile state could have one for every field. */
const REASONS_TOLD = 32;

export class ImageFiller {
  readonly #reasons: string[] = [];

  constructor(readonly image: ControllerImage) {}

  refuse(reason: string): void {
    this.#reasons.push(reason);
  }

  u8(name: string, at: number, value: number): void {
    if (this.#fits(name, value, 0xff)) this.image.setU8(at, value);
  }

  u16(name: string, at: number, value: number): void {
    if (this.#fits(name, value, 0xffff)) this.image.setU16(at, value);
  }

  u32(name: string, at: number, value: number): void {
    if (this.#fits(name, value, 0xffffffff)) this.image.setU32(at, value);
  }

  u64(name: string, at: number, value: number): void {
    if (this.#fits(name, value, Number.MAX_SAFE_INTEGER)) this.image.setU64(at, value);
  }

  /** Bytes into a span of `length`; what is longer must be zero beyond it. */
  bytes(name: string, at: number, value: Uint8Array, length: number): void {
    this.image.bytes.set(value.subarray(0, length), at);
    if (value.subarray(length).some((byte) => byte !== 0)) {
      this.refuse(`${name} beyond its first ${length} bytes, which this controller does not have`);
    }
  }

  /** @throws RequestError EINVAL with every reason there is */
  finish(): void {
    if (this.#reasons.length === 0) return;
    const told = this.#reasons.slice(0, REASONS_TOLD);
    const rest = this.#reasons.length - told.length;
    throw refused(...told, ...(rest > 0 ? [`and ${rest} more`] : []));
  }

  #fits(name: string, value: number, maximum: number): boolean {
    const fits = Number.isInteger(value) && value >= 0 && value <= maximum;
    if (!fits) this.refuse(`${name} is ${value}, not a number from 0 to ${maximum}`);
    return fits;
  }
}
