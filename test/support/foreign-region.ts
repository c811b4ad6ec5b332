// SPDX-License-Identifier: Apache-2.0
/**
 * A device of another make that migrates by the region of v1 and no other way. It knows nothing of our implementation,
 * and is as strict as such servers were: it takes no transition that the specification's table does not have, and loads
 * only in the transactions in which its like saves.
 */

import type {
  DmaPeer,
  ManagementPort,
  ServedDevice,
  ServedIrq,
  ServedRegion,
} from '../../src/server/index.js';
import type { Fd } from '../../src/transport/index.js';
import { Errno, RequestError } from '../../src/wire/index.js';

export interface ForeignOptions {
  readonly index?: number;
  readonly dataOffset?: number;
  readonly dataSize?: number;
  /** Bits of device_state beside the three. */
  readonly reserved?: number;
  /** What can be mapped, and where: the device itself uses it as it uses `section`. */
  readonly memory?: {
    readonly fd: Fd;
    readonly offset: number;
    readonly areas: readonly { offset: number; size: number }[];
  };
  /** All of the region, if it has `memory`. */
  readonly bytes?: Uint8Array;
  readonly flags?: number;
}

/** What can be written in each state (vfio-user 0.9.1, "Device states"), and QEMU's way back from pre-copy. */
const TRANSITIONS: Readonly<Record<number, readonly number[]>> = {
  0: [1],
  1: [0, 2, 3, 4],
  2: [0, 1],
  3: [1, 2],
  4: [1],
  6: [],
};

export class ForeignDevice implements ServedDevice {
  readonly name = 'foreign';
  readonly flags: number;
  readonly irqs: readonly ServedIrq[] = [];
  readonly regions: readonly (ServedRegion | undefined)[];
  readonly management: ManagementPort = {
    resets: 0,
    intxAssigned: false,
    note: new Uint8Array(0),
    describe: () => '',
    dmaMaps: () => [],
    dmaFiles: () => ({ entries: [], files: [] }),
    readMemory: () => {},
    writeMemory: () => {},
  };
  readonly index: number;
  readonly dataOffset: number;
  readonly dataSize: number;
  readonly #reserved: number;
  readonly #bytes: Uint8Array;
  state = 1;
  /** Transactions to give. */
  chunks: Uint8Array[] = [];
  /** What pending_bytes reads, of the number of chunks left. */
  pending: (chunks: number) => number = (chunks) => chunks;
  /** What data_offset and data_size read instead. */
  wrong: { offset?: number; size?: number } = {};
  /** Called before a transition; what it throws is answered. */
  hook: (to: number) => void = () => {};
  /** Values written to device_state. */
  written: number[] = [];
  /** Transactions that were loaded. */
  loaded: Uint8Array[] = [];
  /** Accesses to the data section by messages. */
  accesses = 0;
  #staged: Uint8Array | undefined;

  constructor(options: ForeignOptions = {}) {
    const { index = 9, dataOffset = 64, dataSize = 4096, reserved = 0, memory, flags = 2 } = options;
    this.flags = flags;
    this.index = index;
    this.dataOffset = dataOffset;
    this.dataSize = dataSize;
    this.#reserved = reserved;
    this.#bytes = options.bytes ?? new Uint8Array(dataOffset + dataSize);
    const regions = new Array<ServedRegion | undefined>(index + 1).fill(undefined);
    regions[index] = {
      size: dataOffset + dataSize,
      flags: 3,
      type: { type: 3, subtype: 1 },
      ...(memory === undefined ? {} : { memory }),
    };
    this.regions = regions;
  }

  readRegion(region: number, offset: number, target: Uint8Array): void {
    const view = new DataView(target.buffer, target.byteOffset, target.length);
    if (region !== this.index) throw refused();
    if (offset >= this.dataOffset) {
      this.accesses++;
      target.set(this.#bytes.subarray(offset, offset + target.length));
    } else if (offset === 0 && target.length === 4)
      view.setUint32(0, (this.state | this.#reserved) >>> 0, true);
    else if (target.length === 8) view.setBigUint64(0, BigInt(this.#read(offset)), true);
    else throw refused();
  }

  #read(offset: number): number {
    switch (offset) {
      case 8:
        // Who reads it has taken the last chunk.
        if (this.#staged !== undefined) this.chunks.shift();
        this.#staged = undefined;
        return this.state === 2 || this.state === 3 ? this.pending(this.chunks.length) : 0;
      case 16:
        if (this.state !== 4) {
          this.#staged = this.chunks[0] ?? new Uint8Array(0);
          this.#bytes.set(this.#staged, this.dataOffset);
        }
        return this.wrong.offset ?? this.dataOffset;
      case 24:
        if (this.#staged === undefined) throw refused();
        return this.wrong.size ?? this.#staged.length;
      default:
        throw refused();
    }
  }

  writeRegion(region: number, offset: number, data: Uint8Array): void {
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    if (region !== this.index) throw refused();
    if (offset >= this.dataOffset) {
      this.accesses++;
      this.#bytes.set(data, offset);
    } else if (offset === 0 && data.length === 4) this.#setState(view.getUint32(0, true));
    else if (offset === 24 && data.length === 8 && this.state === 4) {
      const size = Number(view.getBigUint64(0, true));
      this.loaded.push(this.#bytes.slice(this.dataOffset, this.dataOffset + size));
    } else throw refused();
  }

  #setState(value: number): void {
    this.written.push(value);
    const to = (value & ~this.#reserved) >>> 0;
    if ((value & this.#reserved) >>> 0 !== this.#reserved || !TRANSITIONS[this.state]!.includes(to))
      throw refused();
    this.hook(to);
    this.#staged = undefined;
    this.state = to;
  }

  reset(): void {
    this.state = 1;
  }

  dmaMap(): void {}
  dmaUnmap(): void {}
  setIrqs(): void {}
  connected(_peer: DmaPeer): void {}
  disconnected(): void {
    this.state = 1;
  }
  openMigration(): undefined {
    return undefined;
  }
}

function refused(): RequestError {
  return new RequestError(Errno.EINVAL, 'no');
}
