// SPDX-License-Identifier: Apache-2.0
/**
 * What QEMU 5.2 to 7.2 does with the migration region of a device (its `hw/vfio/migration.c`), access by access: states
 * by mask and value, data in aligned pieces of 8, 4, 2 and 1 bytes, and its own idea of when to stop.
 */

import type { Client } from '../../src/client/index.js';

const STATE = 0;
const PENDING = 8;
const OFFSET = 16;
const SIZE = 24;
const RUNNING = 1;
const SAVING = 2;
const RESUMING = 4;
const MASK = RUNNING | SAVING | RESUMING;

/** One `VFIO_MIG_FLAG_DEV_DATA_STATE` of the stream. */
export type QemuStream = Uint8Array[];

export class QemuV1 {
  readonly #client: Client;
  readonly #region: number;
  readonly #regionSize: number;
  /** Accesses to the region, for a test to count. */
  accesses = 0;

  private constructor(client: Client, region: number, size: number) {
    this.#client = client;
    this.#region = region;
    this.#regionSize = size;
  }

  /** Finds the region by its type, as `vfio_get_dev_region_info` does. */
  static async realize(client: Client): Promise<QemuV1> {
    const { regions } = await client.deviceInfo();
    for (let index = 9; index < regions; index++) {
      const { type, size, fd } = await client.regionInfo(index);
      fd?.close();
      if (type?.type === 3 && type.subtype === 1) return new QemuV1(client, index, size);
    }
    throw new Error('no migration region');
  }

  async #rw(offset: number, bytes: Uint8Array, write: boolean): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const [left, position] = [bytes.length - at, offset + at];
      const length = [8, 4, 2].find((one) => left >= one && position % one === 0) ?? 1;
      const piece = bytes.subarray(at, at + length);
      this.accesses++;
      if (write) await this.#client.regionWrite(this.#region, position, piece);
      else await this.#client.regionRead(this.#region, position, piece);
      at += length;
    }
  }

  async #read(register: number, length: 4 | 8): Promise<number> {
    const bytes = new Uint8Array(8);
    await this.#rw(register, bytes.subarray(0, length), false);
    return Number(new DataView(bytes.buffer).getBigUint64(0, true));
  }

  async #write(register: number, value: number, length: 4 | 8): Promise<void> {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
    await this.#rw(register, bytes.subarray(0, length), true);
  }

  deviceState(): Promise<number> {
    return this.#read(STATE, 4);
  }

  /** `vfio_migration_set_state`. A failed write: the state is read again, and ERROR is the end of QEMU. */
  async #setState(mask: number, value: number): Promise<void> {
    const state = (((await this.deviceState()) & mask) | value) >>> 0;
    try {
      await this.#write(STATE, state, 4);
    } catch (error) {
      if ((await this.deviceState()) === (RESUMING | SAVING))
        throw new Error('hw_error: device is in error state');
      throw error;
    }
  }

  /** `vfio_vmstate_change`. */
  async vmStateChange(running: boolean): Promise<void> {
    if (running) await this.#setState(~MASK, RUNNING);
    else await this.#setState(~RUNNING, 0);
  }

  /** `vfio_save_setup`. */
  async saveSetup(): Promise<void> {
    await this.#setState(MASK, SAVING);
  }

  async #saveBuffer(stream: QemuStream): Promise<number> {
    const offset = await this.#read(OFFSET, 8);
    const data = new Uint8Array(await this.#read(SIZE, 8));
    await this.#rw(offset, data, false);
    if (data.length > 0) stream.push(data);
    return data.length;
  }

  /** `vfio_save_iterate`. @returns whether there was something */
  async saveIterate(stream: QemuStream): Promise<boolean> {
    if ((await this.#read(PENDING, 8)) === 0) return false;
    await this.#saveBuffer(stream);
    return true;
  }

  /** `vfio_save_complete_precopy`. */
  async saveComplete(stream: QemuStream): Promise<void> {
    await this.#setState(~RUNNING, SAVING);
    while ((await this.#read(PENDING, 8)) > 0) if ((await this.#saveBuffer(stream)) === 0) break;
    await this.#setState(~SAVING, 0);
  }

  /** `vfio_migration_state_notifier`, of a migration that was cancelled or has failed. */
  async cancelled(): Promise<void> {
    await this.#setState(~(SAVING | RESUMING), RUNNING);
  }

  /** `vfio_load_setup`. */
  async loadSetup(): Promise<void> {
    await this.#setState(~MASK, RESUMING);
  }

  /** `vfio_load_buffer`: what is too long for this region is divided. */
  async loadBuffer(data: Uint8Array): Promise<void> {
    for (let at = 0; at < data.length; ) {
      const offset = await this.#read(OFFSET, 8);
      const part = data.subarray(at, at + this.#regionSize - offset);
      await this.#rw(offset, part, true);
      await this.#write(SIZE, part.length, 8);
      at += part.length;
    }
  }
}
