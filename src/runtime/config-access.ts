// SPDX-License-Identifier: Apache-2.0
/** The accesses that a guest makes to a config space. */

import { findCapability, PciCapability, type PciConfigSpace } from '../device/index.js';
import { Errno, RequestError } from '../wire/index.js';

/** What of a config space an access needs. */
export type ConfigBytes = Pick<PciConfigSpace, 'bytes' | 'writable' | 'initial'>;

export class ConfigAccess {
  readonly #space: ConfigBytes;

  constructor(space: ConfigBytes) {
    this.#space = space;
  }

  /** Accesses to another config space of the same device, as after a reset. */
  static fresh({ initial, writable }: ConfigBytes): ConfigAccess {
    return new ConfigAccess({ bytes: initial.slice(), initial, writable });
  }

  /** @throws RequestError EINVAL outside of the config space */
  read(offset: number, target: Uint8Array): void {
    this.#requireInside(offset, target.length);
    target.set(this.#space.bytes.subarray(offset, offset + target.length));
  }

  /** Changes the writable bits only. @throws RequestError EINVAL outside of the config space */
  write(offset: number, data: Uint8Array): void {
    this.#requireInside(offset, data.length);
    const { bytes, writable } = this.#space;
    for (let i = 0; i < data.length; i++) {
      const mask = writable[offset + i]!;
      bytes[offset + i] = (bytes[offset + i]! & ~mask) | (data[i]! & mask);
    }
  }

  /** Whether a function level reset has been asked for (PCIe device control, bit 15) since the last call. */
  takeFunctionLevelReset(): boolean {
    const { bytes } = this.#space;
    const express = findCapability(bytes, PciCapability.EXPRESS);
    if (express === 0 || (bytes[express + 9]! & 0x80) === 0) return false;
    bytes[express + 9]! &= 0x7f; // reads as zero
    return true;
  }

  reset(): void {
    this.#space.bytes.set(this.#space.initial);
  }

  #requireInside(offset: number, length: number): void {
    if (offset + length > this.#space.bytes.length)
      throw new RequestError(Errno.EINVAL, `config space access 0x${offset.toString(16)}+${length}`);
  }
}
