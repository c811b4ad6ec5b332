// SPDX-License-Identifier: Apache-2.0
/**
 * Migration protocol v1 as its client drives it: the region, as QEMU 5.2 to 7.2 did. It offers what the client of v2
 * does, states by their names there, so that the code that moves a state need not know which it has.
 */

import { asDevstateError, DevstateError } from '../errors.js';
import { deviceStateOf, deviceStatePath, isDeviceState, migrationStateOf } from '../migration/index.js';
import {
  Command,
  DEFAULT_PAGE_SIZES,
  DeviceInfoFlag,
  type DeviceState,
  DeviceStateBit,
  DIRTY_BITMAP_OFFSET,
  DIRTY_PAGES_LENGTH,
  DirtyPagesFlag,
  type DmaLoggingReport,
  DmaUnmapFlag,
  deviceStateName,
  dirtyBitmapLength,
  Errno,
  encodeDirtyPages,
  encodeDmaUnmap,
  encodeUnmapBitmap,
  HEADER_LENGTH,
  MIGRATION_REGION_TYPE,
  MIGRATION_REGISTERS_LENGTH,
  MigrationFlag,
  MigrationRegister,
  type MigrationState,
  migrationRegisterWidths,
  PciRegion,
  readU64,
  DeviceState as State,
  writeU64,
} from '../wire/index.js';
import type { Client } from './client.js';
import { MigrationClient } from './migration-client.js';
import { RegionMemory, type RegionWithFd } from './region-memory.js';
import type { Requester } from './requester.js';

/** Longest chunk of a source that we take: it bounds what a server makes us hold. */
const MAX_CHUNK = 64 * 1024 * 1024;
/** Regions that are looked at for the one of migration. */
const MAX_REGIONS = 256;

/** The page size of DIRTY_PAGES: the host's. */
const PAGE_SIZE = DEFAULT_PAGE_SIZES;

export class RegionMigrationClient<Through extends Requester = Client> extends MigrationClient<Through> {
  override readonly protocol = 'v1';
  readonly #index: number;
  readonly #size: number;
  readonly #memory: RegionMemory;
  /** What is left of the chunk that is being read: where, and how much. */
  #at = 0;
  #left = 0;
  /** pending_bytes, asked for when the last chunk was taken, so that the server makes the next one meanwhile. */
  #ahead: Promise<number> | undefined;
  /** data_offset of the next chunk to be loaded, asked for together with the last data_size. */
  #place: Promise<number> | undefined;

  private constructor(client: Through, region: RegionWithFd, map: boolean) {
    super(client);
    this.#index = region.index;
    this.#size = region.size;
    this.#memory = new RegionMemory(client, region, map);
  }

  /**
   * Looks for the migration region; undefined when the device has none.
   * @param options.map whether its data section is mapped, where it can be. Default true.
   */
  static async open<Through extends Requester>(
    client: Through,
    { map = true }: { map?: boolean } = {},
  ): Promise<RegionMigrationClient<Through> | undefined> {
    const { flags, regions } = await client.deviceInfo();
    const first = (flags & DeviceInfoFlag.PCI) !== 0 ? PciRegion.COUNT : 0;
    for (let index = first; index < Math.min(regions, MAX_REGIONS); index++) {
      const region = await client.regionInfo(index);
      const { type, subtype } = MIGRATION_REGION_TYPE;
      if (region.type?.type === type && region.type.subtype === subtype)
        return new RegionMigrationClient(client, region, map);
      region.fd?.close();
    }
    return undefined;
  }

  /** Whether data go through shared memory. */
  get isMapped(): boolean {
    return this.#memory.isMapped;
  }

  override close(): void {
    this.#memory.close();
    super.close();
  }

  /** In v1 a device has pre-copy, even if nothing comes of it, and no P2P. */
  override async flags(): Promise<number> {
    return MigrationFlag.STOP_COPY | MigrationFlag.PRE_COPY;
  }

  override get maxChunk(): number {
    return Math.min(this.#size, MAX_CHUNK);
  }

  override async state(): Promise<MigrationState> {
    return migrationStateOf(await this.#deviceState());
  }

  async #deviceState(): Promise<DeviceState> {
    const bits = (await this.#readRegister(MigrationRegister.DEVICE_STATE)) & DeviceStateBit.MASK;
    if (isDeviceState(bits)) return bits;
    throw new DevstateError('DEVSTATE_E_PROTOCOL', `the device says that it is in ${deviceStateName(bits)}`);
  }

  /** Goes there by writes that v1 allows, through RUNNING where there is no other way: from RESUMING to STOP, for one. */
  override async setState(target: MigrationState): Promise<void> {
    await this.#endAhead();
    for (const state of legalPath(await this.#deviceState(), deviceStateOf(target))) {
      if (state !== State.STOP_COPY && state !== State.PRE_COPY) this.#left = 0;
      await this.#writeState(state);
    }
  }

  async #writeState(state: DeviceState): Promise<void> {
    // Bits 3 to 31 are kept, whatever they are.
    const before = await this.#readRegister(MigrationRegister.DEVICE_STATE);
    const written = ((before & ~DeviceStateBit.MASK) | state) >>> 0;
    try {
      await this.explained(this.#writeRegister(MigrationRegister.DEVICE_STATE, written));
    } catch (error) {
      const left = await this.#deviceState().catch(() => undefined);
      if (left !== State.ERROR) throw error;
      const { code, message, errno } = asDevstateError(error);
      throw new DevstateError(code, `${message}; the device is in ERROR and has to be reset`, {
        cause: error,
        ...(errno === undefined ? {} : { errno }),
      });
    }
  }

  /** v1 checks what was loaded when the device is to run, not before. */
  override async commitLoad(): Promise<void> {}

  /** pending_bytes is no size, only whether there is more. */
  override async dataSize(): Promise<undefined> {
    return undefined;
  }

  /** At most what is left of one chunk. */
  override async readData(target: Uint8Array): Promise<number> {
    if (target.length === 0 || (this.#left === 0 && !(await this.#nextChunk()))) return 0;
    const size = Math.min(target.length, this.#left);
    await this.explained(this.#memory.read(this.#at, target.subarray(0, size)));
    this.#at += size;
    this.#left -= size;
    if (this.#left === 0) {
      this.#ahead = this.#readRegister(MigrationRegister.PENDING_BYTES);
      // Looked at when the next chunk is asked for, if it is.
      this.#ahead.catch(() => {});
    }
    return size;
  }

  async #nextChunk(): Promise<boolean> {
    const ahead = this.#ahead;
    this.#ahead = undefined;
    // What was reported ahead may be old: in PRE_COPY there may be something by now.
    const told = (await this.explained(ahead ?? Promise.resolve(0))) || (await this.#pending());
    if (told === 0) return false;
    const [offset, size] = await this.explained(
      Promise.all([
        this.#readRegister(MigrationRegister.DATA_OFFSET),
        this.#readRegister(MigrationRegister.DATA_SIZE),
      ]),
    );
    this.#requireInside(offset, size);
    this.#at = offset;
    this.#left = size;
    return size > 0;
  }

  #pending(): Promise<number> {
    return this.explained(this.#readRegister(MigrationRegister.PENDING_BYTES));
  }

  /** What was asked for ahead is of no use in another state. */
  async #endAhead(): Promise<void> {
    const asked = [this.#ahead, this.#place];
    this.#ahead = undefined;
    this.#place = undefined;
    await Promise.allSettled(asked);
  }

  #requireInside(offset: number, size: number): void {
    if (offset >= MIGRATION_REGISTERS_LENGTH && offset + size <= this.#size) return;
    throw new DevstateError(
      'DEVSTATE_E_PROTOCOL',
      `the device puts ${size} bytes of data at ${offset} of its migration region`,
    );
  }

  /** In chunks that there is room for; in one, if it has to be `whole`. @throws DEVSTATE_E_INCOMPATIBLE when there is none for that */
  override async writeData(bytes: Uint8Array, { whole = false } = {}): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      this.#place ??= this.#readRegister(MigrationRegister.DATA_OFFSET);
      const offset = await this.explained(this.#place);
      this.#requireInside(offset, 1);
      const chunk = bytes.subarray(at, at + this.#size - offset);
      if (whole && chunk.length < bytes.length) {
        const message = `the destination takes ${chunk.length} bytes at a time and the source gives ${bytes.length}, which v1 does not let anybody divide`;
        throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
      }
      await this.explained(this.#memory.write(offset, chunk));
      const consumed = this.#writeRegister(MigrationRegister.DATA_SIZE, chunk.length);
      this.#place = this.#readRegister(MigrationRegister.DATA_OFFSET);
      // Looked at with the next chunk, if there is one.
      this.#place.catch(() => {});
      await this.explained(consumed);
      at += chunk.length;
    }
  }

  /** All of memory, by pages of 4096 bytes: v1 has no choice. */
  override async startLogging(): Promise<number> {
    await this.#dirtyPages(DirtyPagesFlag.START);
    return PAGE_SIZE;
  }

  override stopLogging(): Promise<void> {
    return this.#dirtyPages(DirtyPagesFlag.STOP);
  }

  #dirtyPages(flags: number): Promise<void> {
    const request = new Uint8Array(DIRTY_PAGES_LENGTH);
    encodeDirtyPages(new DataView(request.buffer), 0, { argsz: request.length, flags });
    return this.explained(this.client.request(Command.DIRTY_PAGES, [request], () => {}));
  }

  override reportLogging(report: DmaLoggingReport): Promise<Uint8Array> {
    const range = { ...report, bitmapLength: dirtyBitmapLength(report.length, report.pageSize) };
    const length = DIRTY_BITMAP_OFFSET + range.bitmapLength;
    const request = new Uint8Array(DIRTY_BITMAP_OFFSET);
    const flags = DirtyPagesFlag.GET_BITMAP;
    encodeDirtyPages(new DataView(request.buffer), 0, { argsz: length, flags, range });
    return this.#bitmap(Command.DIRTY_PAGES, request, length);
  }

  /** Unmaps a range of guest memory, and tells what the device has written of it since the last report. */
  unmapDirty(address: number, size: number): Promise<Uint8Array> {
    const range = {
      iova: address,
      length: size,
      pageSize: PAGE_SIZE,
      bitmapLength: dirtyBitmapLength(size, PAGE_SIZE),
    };
    const length = DIRTY_BITMAP_OFFSET + range.bitmapLength;
    const request = new Uint8Array(DIRTY_BITMAP_OFFSET);
    const view = new DataView(request.buffer);
    encodeDmaUnmap(view, 0, { flags: DmaUnmapFlag.GET_DIRTY_BITMAP, address, size });
    encodeUnmapBitmap(view, 0, length, range);
    return this.#bitmap(Command.DMA_UNMAP, request, length);
  }

  #bitmap(command: number, request: Uint8Array, length: number): Promise<Uint8Array> {
    const take = this.client.request(command, [request], (frame) => {
      if (frame.length < HEADER_LENGTH + length)
        throw new DevstateError('DEVSTATE_E_PROTOCOL', 'the dirty bitmap is too short');
      return frame.bytes.slice(HEADER_LENGTH + DIRTY_BITMAP_OFFSET, HEADER_LENGTH + length);
    });
    return this.explained(take);
  }

  override async reset(): Promise<void> {
    await this.#endAhead();
    this.#left = 0;
    await super.reset();
  }

  async #readRegister(register: MigrationRegister): Promise<number> {
    const bytes = new Uint8Array(migrationRegisterWidths.get(register) ?? 0);
    await this.client.regionRead(this.#index, register, bytes);
    const view = new DataView(bytes.buffer);
    try {
      return bytes.length === 4 ? view.getUint32(0, true) : readU64(view, 0);
    } catch (error) {
      throw asDevstateError(error, 'DEVSTATE_E_PROTOCOL');
    }
  }

  async #writeRegister(register: MigrationRegister, value: number): Promise<void> {
    const bytes = new Uint8Array(migrationRegisterWidths.get(register) ?? 0);
    const view = new DataView(bytes.buffer);
    if (bytes.length === 4) view.setUint32(0, value, true);
    else writeU64(view, 0, value);
    await this.client.regionWrite(this.#index, register, bytes);
  }
}

/** @throws DEVSTATE_E_REFUSED where v1 has no way, as a server would */
function legalPath(from: DeviceState, to: DeviceState): DeviceState[] {
  try {
    return deviceStatePath(from, to);
  } catch (cause) {
    const { message } = asDevstateError(cause);
    throw new DevstateError('DEVSTATE_E_REFUSED', message, { cause, errno: Errno.EINVAL });
  }
}
