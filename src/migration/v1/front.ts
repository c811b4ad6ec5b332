// SPDX-License-Identifier: Apache-2.0
/**
 * The migration region of v1 in front of a device that lives by v2. Registers and data section go in and out; what the
 * device does meanwhile is what it does for a client of v2 that asks for the same.
 *
 *     write device_state  ─▶ setState   one write may be several arcs; if one fails, back to where it came from, or ERROR
 *     read pending_bytes  ─▶ read       of the next chunk, so that 0 means that there is none
 *     read data_offset    ─▶            the chunk is there: in the data section, where the client has that mapped
 *     write data_size     ─▶ write
 *
 * A device without pre-copy takes PRE_COPY for RUNNING, with nothing to send: v1 does not let it refuse.
 */

import {
  DeviceState,
  deviceStateName,
  Errno,
  MigrationFlag,
  MigrationRegister,
  MigrationState,
  RequestError,
  readU64,
  writeU64,
} from '../../wire/index.js';
import { deviceStateOf, migrationStateOf, requireTransition } from './device-state.js';
import {
  type IterationAccess,
  type LoadPhase,
  loadSteps,
  type SaveAction,
  type SavePhase,
  saveSteps,
} from './iteration.js';
import type { LifeCycle } from './life-cycle.js';
import { DATA_OFFSET, regionPlace } from './registers.js';

/** The memory between the registers' client and us. */
export interface DataSection {
  readonly size: number;
  /** All of it. Called only when there are data for it. */
  bytes(): Uint8Array;
  /** The client has it mapped: what it holds may change at any time. */
  readonly shared: boolean;
}

export class RegionFront {
  readonly #device: LifeCycle;
  readonly #section: DataSection;
  #generation: number;
  /** The client sees PRE_COPY; the device cannot do that, and runs. */
  #pretends = false;
  #saving: SavePhase = 'idle';
  #loading: LoadPhase = 'idle';
  /** The chunk that the client is about to take. */
  #chunk: readonly Uint8Array[] = [];
  #chunkSize = 0;
  /** A chunk that was loaded, out of reach of a client that has the section mapped. */
  #private = new Uint8Array(0);
  /** What the client wrote to data_size last, in RESUMING. */
  #loadedSize = 0;

  constructor(device: LifeCycle, section: DataSection) {
    this.#device = device;
    this.#section = section;
    this.#generation = device.generation;
  }

  /** What device_state reads. */
  get deviceState(): DeviceState {
    this.#catchUp();
    const { state } = this.#device;
    return this.#pretends && state === MigrationState.RUNNING ? DeviceState.PRE_COPY : deviceStateOf(state);
  }

  /**
   * Reads a register or a part of the chunk into `target`, which is valid until the promise settles.
   * @throws RequestError EINVAL for an access that is not defined or out of order, EIO in ERROR, or what the device refuses with
   */
  read(offset: number, target: Uint8Array): void | Promise<void> {
    const place = regionPlace(offset, target.length, this.#section.size);
    this.#catchUp();
    if (place.kind === 'data') {
      this.#readData(place.at, target);
      return;
    }
    const view = new DataView(target.buffer, target.byteOffset, target.length);
    switch (place.register) {
      case MigrationRegister.DEVICE_STATE:
        view.setUint32(0, this.deviceState, true);
        return;
      case MigrationRegister.RESERVED:
        view.setUint32(0, 0, true);
        return;
      case MigrationRegister.PENDING_BYTES:
        return this.#readPending(view);
      case MigrationRegister.DATA_OFFSET:
        this.#readOffset();
        writeU64(view, 0, DATA_OFFSET);
        return;
      case MigrationRegister.DATA_SIZE:
        writeU64(view, 0, this.#readSize());
    }
  }

  /** As `read`, the other way. */
  write(offset: number, data: Uint8Array): void | Promise<void> {
    const place = regionPlace(offset, data.length, this.#section.size);
    this.#catchUp();
    if (place.kind === 'data') {
      this.#load('data');
      this.#section.bytes().set(data, place.at);
      return;
    }
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    switch (place.register) {
      case MigrationRegister.DEVICE_STATE:
        return this.#setState(view.getUint32(0, true));
      case MigrationRegister.RESERVED:
        return;
      case MigrationRegister.DATA_SIZE:
        return this.#consume(readU64(view, 0));
      default:
        throw new RequestError(Errno.EINVAL, 'this register of the migration region is read only');
    }
  }

  /** What was under way may have ended without us: by a reset, or by another connection. */
  #catchUp(): void {
    if (this.#generation === this.#device.generation) return;
    this.#generation = this.#device.generation;
    this.#pretends = false;
    this.#forgetChunk();
    this.#loading = 'idle';
    this.#loadedSize = 0;
  }

  async #setState(written: number): Promise<void> {
    const from = this.deviceState;
    const to = requireTransition(from, written);
    if (to === DeviceState.PRE_COPY && (this.#device.flags & MigrationFlag.PRE_COPY) === 0) {
      this.#pretends = true;
      return;
    }
    const before = this.#device.state;
    try {
      await this.#device.setState(migrationStateOf(to));
    } catch (error) {
      await this.#goBack(before);
      throw error;
    }
    this.#pretends = false;
  }

  /**
   * A failed write leaves the previous state, or ERROR. What was loaded is spent once the device has taken it, so there
   * is no way back to RESUMING.
   */
  async #goBack(before: MigrationState): Promise<void> {
    const { state } = this.#device;
    if (state === before || state === MigrationState.ERROR) return;
    try {
      if (before === MigrationState.RESUMING) await this.#device.breakDown();
      else await this.#device.setState(before);
    } catch {
      // Nor is it ours to break while another connection drives it.
      await this.#device.breakDown().catch(() => {});
    }
  }

  #readPending(view: DataView): void | Promise<void> {
    const state = this.deviceState;
    if (state === DeviceState.ERROR) throw new RequestError(Errno.EIO, 'the device has to be reset');
    const saves = state === DeviceState.PRE_COPY || state === DeviceState.STOP_COPY;
    if (!saves || this.#pretends) {
      writeU64(view, 0, 0);
      return;
    }
    if (this.#save('pending_bytes') === 'next') return this.#next(view);
    writeU64(view, 0, this.#pending);
  }

  async #next(view: DataView): Promise<void> {
    this.#forgetChunk();
    const parts = await this.#device.read(this.#section.size);
    const size = parts.reduce((sum, part) => sum + part.length, 0);
    if (size > 0) {
      this.#chunk = parts;
      this.#chunkSize = size;
      this.#saving = 'pending';
    }
    writeU64(view, 0, this.#pending);
  }

  /** The chunk at hand and about what comes after it; 0 only when there is no chunk. */
  get #pending(): number {
    return this.#chunkSize === 0 ? 0 : this.#chunkSize + this.#device.dataSize;
  }

  #readOffset(): void {
    if (this.deviceState === DeviceState.RESUMING) this.#load('data_offset');
    else if (this.#save('data_offset') === 'stage' && this.#section.shared)
      copyFrom(this.#chunk, 0, this.#section.bytes().subarray(0, this.#chunkSize));
  }

  #readSize(): number {
    if (this.deviceState === DeviceState.RESUMING) return this.#loadedSize;
    this.#save('data_size');
    return this.#chunkSize;
  }

  #readData(at: number, target: Uint8Array): void {
    this.#save('data');
    if (at + target.length > this.#chunkSize)
      throw new RequestError(Errno.EINVAL, `the chunk is ${this.#chunkSize} bytes long`);
    copyFrom(this.#chunk, at, target);
  }

  /** At once where the device takes data at once: a promise costs the connection a new buffer. */
  #consume(size: number): void | Promise<void> {
    const room = this.#section.size;
    if (size > room)
      throw new RequestError(Errno.EINVAL, `data_size ${size}: there is room for ${room} bytes`);
    this.#load('data_size');
    this.#loadedSize = size;
    if (size === 0) return;
    const bytes = this.#section.bytes().subarray(0, size);
    return this.#device.write(this.#section.shared ? this.#takePrivately(bytes) : bytes);
  }

  /** What is checked and then used must not change in between. */
  #takePrivately(bytes: Uint8Array): Uint8Array {
    if (this.#private.length < bytes.length) this.#private = new Uint8Array(this.#section.size);
    this.#private.set(bytes);
    return this.#private.subarray(0, bytes.length);
  }

  #forgetChunk(): void {
    this.#saving = 'idle';
    this.#chunk = [];
    this.#chunkSize = 0;
  }

  /** One step of the saving. A chunk that is asked for is still to be fetched. @throws RequestError EINVAL when it is out of order */
  #save(access: IterationAccess): SaveAction {
    const { action, phase } = saveSteps[this.#saving][access];
    if (action === 'refuse' || this.deviceState === DeviceState.RESUMING) throw this.#outOfOrder(access);
    if (action !== 'next') this.#saving = phase;
    return action;
  }

  #load(access: Exclude<IterationAccess, 'pending_bytes'>): void {
    const { action, phase } = loadSteps[this.#loading][access];
    if (action === 'refuse' || this.deviceState !== DeviceState.RESUMING) throw this.#outOfOrder(access);
    this.#loading = phase;
  }

  #outOfOrder(access: IterationAccess): RequestError {
    const errno = this.deviceState === DeviceState.ERROR ? Errno.EIO : Errno.EINVAL;
    return new RequestError(errno, `${access} is out of turn in ${deviceStateName(this.deviceState)}`);
  }
}

/** Fills `target` from the bytes of `parts` at `offset`. */
function copyFrom(parts: readonly Uint8Array[], offset: number, target: Uint8Array): void {
  let start = -offset;
  for (const part of parts) {
    const from = Math.max(-start, 0);
    const to = Math.min(part.length, target.length - start);
    if (from < to) target.set(part.subarray(from, to), start + from);
    start += part.length;
  }
}
