// SPDX-License-Identifier: Apache-2.0
/** What the VMM has written to the PCI config space since the last reset, byte by byte: a new server is to be as it was. */

/** Extended configuration space. */
const MAX_SIZE = 4096;

const COMMAND = 0x04;
const STATUS = 0x06;
const STATUS_LENGTH = 2;
/** The registers of a dword that are written as one. */
const WIDTHS = [4, 2, 1];

export interface ConfigWrite {
  readonly offset: number;
  readonly data: Uint8Array;
}

/** A bit that resets the function when it is written as 1. */
export interface ResetBit {
  readonly offset: number;
  readonly mask: number;
}

export interface CapturedConfig {
  /** Offset and value of each byte that was written. */
  readonly bytes: readonly (readonly [number, number])[];
  readonly resetBits: readonly ResetBit[];
}

export class ConfigLog {
  /** Undefined where nothing was written. */
  readonly #bytes: (number | undefined)[] = [];
  /** Where the device says that it has them. */
  resetBits: readonly ResetBit[] = [];

  write(offset: number, data: Uint8Array): void {
    if (this.resets(offset, data)) {
      this.clear();
      return;
    }
    for (let i = 0; i < data.length && offset + i < MAX_SIZE; i++) {
      const at = offset + i;
      // Bits of the status register are cleared by being written: nothing that lasts.
      if (at < STATUS || at >= STATUS + STATUS_LENGTH) this.#bytes[at] = data[i];
    }
  }

  /** Whether a write is a function level reset. */
  resets(offset: number, data: Uint8Array): boolean {
    return this.resetBits.some(({ offset: at, mask }) => ((data[at - offset] ?? 0) & mask) !== 0);
  }

  /** Back to what a reset leaves. */
  clear(): void {
    this.#bytes.length = 0;
  }

  /** What another relay is to have. */
  capture(): CapturedConfig {
    const bytes: [number, number][] = [];
    this.#bytes.forEach((value, offset) => {
      if (value !== undefined) bytes.push([offset, value]);
    });
    return { bytes, resetBits: this.resetBits };
  }

  restore({ bytes, resetBits }: CapturedConfig): void {
    for (const [offset, value] of bytes) this.#bytes[offset] = value;
    this.resetBits = resetBits;
  }

  /** In ascending order, and the command register last: the device is turned on when all else is there. */
  *writes(): Generator<ConfigWrite> {
    for (let at = 0; at < this.#bytes.length; ) {
      const width = at === COMMAND ? 2 : this.#widthAt(at);
      if (width > 0 && at !== COMMAND) yield this.#writeAt(at, width);
      at += Math.max(1, width);
    }
    if (this.#has(COMMAND, 1)) yield this.#writeAt(COMMAND, this.#has(COMMAND, 2) ? 2 : 1);
  }

  /** The widest aligned access at `at` of which all was written; 0 if there is none. */
  #widthAt(at: number): number {
    return WIDTHS.find((width) => at % width === 0 && this.#has(at, width)) ?? 0;
  }

  #has(at: number, width: number): boolean {
    for (let i = 0; i < width; i++) if (this.#bytes[at + i] === undefined) return false;
    return true;
  }

  #writeAt(offset: number, width: number): ConfigWrite {
    return { offset, data: Uint8Array.from({ length: width }, (_, i) => this.#bytes[offset + i] ?? 0) };
  }
}
