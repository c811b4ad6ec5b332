// SPDX-License-Identifier: Apache-2.0
/**
 * A device of the kernel's VFIO, opened by its group or bound by its own file (`Cdev`). What it is, its regions, its
 * interrupts and its features belong to the open file: a process that has a duplicate of it has the same device in the same state.
 */

import { readSync, writeSync } from 'node:fs';
import { DevstateError } from '../errors.js';
import { checkObject, Errno, type Mapping, native, Protection } from '../native/index.js';
import type { Fd } from '../transport/index.js';
import { call, callMemory, callStruct, type MemoryPart, vfioError } from './call.js';
import {
  type DeviceInfo,
  decodeDeviceInfo,
  decodeIrqInfo,
  decodeRegionInfo,
  encodeDeviceInfo,
  encodeFeature,
  encodeSetIrqsRequest,
  FEATURE_LENGTH,
  FeatureFlag,
  IRQ_INFO_LENGTH,
  type IrqInfo,
  IrqSetFlag,
  REGION_INFO_LENGTH,
  type RegionInfo,
  RegionInfoFlag,
  VfioRequest,
  viewOf,
} from './uapi/index.js';

/** Most bytes of an answer with capabilities that are asked for. */
const MAX_INFO_LENGTH = 64 * 1024;

export class VfioDevice {
  /** Name in sysfs, as in `0000:00:03.0`. */
  readonly name: string;
  readonly fd: Fd;
  readonly #regions = new Map<number, RegionInfo>();

  constructor(name: string, fd: Fd) {
    this.name = name;
    this.fd = fd;
  }

  info(): DeviceInfo {
    const bytes = encodeDeviceInfo();
    callStruct(this.fd.number, VfioRequest.DEVICE_GET_INFO, bytes, `ask ${this.name} what it is`);
    return decodeDeviceInfo(bytes);
  }

  /**
   * Size, flags and offset of a region, with its capabilities. Asked once: none of it changes while the device is open.
   * @throws DEVSTATE_E_VFIO when there is no region of that index
   */
  regionInfo(index: number): RegionInfo {
    const known = this.#regions.get(index);
    if (known !== undefined) return known;
    let info = this.#askRegion(index, REGION_INFO_LENGTH);
    if (info.argsz > REGION_INFO_LENGTH) info = this.#askRegion(index, Math.min(info.argsz, MAX_INFO_LENGTH));
    this.#regions.set(index, info);
    return info;
  }

  #askRegion(index: number, length: number): RegionInfo {
    const bytes = new Uint8Array(length);
    const view = viewOf(bytes);
    view.setUint32(0, length, true);
    view.setUint32(8, index, true);
    const what = `ask ${this.name} for region ${index}`;
    callStruct(this.fd.number, VfioRequest.DEVICE_GET_REGION_INFO, bytes, what);
    return decodeRegionInfo(view, 0, length);
  }

  /** @throws DEVSTATE_E_VFIO when there is no interrupt of that index */
  irqInfo(index: number): IrqInfo {
    const bytes = new Uint8Array(IRQ_INFO_LENGTH);
    const view = viewOf(bytes);
    view.setUint32(0, IRQ_INFO_LENGTH, true);
    view.setUint32(8, index, true);
    const what = `ask ${this.name} for interrupt ${index}`;
    callStruct(this.fd.number, VfioRequest.DEVICE_GET_IRQ_INFO, bytes, what);
    return decodeIrqInfo(view, 0, IRQ_INFO_LENGTH);
  }

  /**
   * Has vectors from `start` on signal eventfds; `null` for one that is not to. Enables the interrupt.
   * @param index `PciIrq` for a PCI device
   */
  setTriggers(index: number, start: number, eventfds: readonly (Fd | null)[]): void {
    const flags = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER;
    const fds = eventfds.map((fd) => fd?.number ?? -1);
    this.#setIrqs({ flags, index, start, count: fds.length }, { fds }, 'arm');
  }

  /** Has an eventfd unmask the vector, as a VMM needs it for INTx. */
  setUnmaskEvent(index: number, vector: number, eventfd: Fd | null): void {
    const flags = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_UNMASK;
    const fds = [eventfd?.number ?? -1];
    this.#setIrqs({ flags, index, start: vector, count: 1 }, { fds }, 'let an eventfd unmask');
  }

  /** Disables the interrupt, all its vectors. */
  disableIrq(index: number): void {
    const flags = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER;
    this.#setIrqs({ flags, index, start: 0, count: 0 }, {}, 'disable');
  }

  /** Signals vectors as the device would. */
  triggerIrq(index: number, start: number, count: number): void {
    const flags = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER;
    this.#setIrqs({ flags, index, start, count }, {}, 'trigger');
  }

  /** `bools` chooses among the vectors; all of them without it. */
  maskIrq(index: number, start: number, count: number, bools?: readonly boolean[]): void {
    this.#mask(IrqSetFlag.ACTION_MASK, index, start, count, bools, 'mask');
  }

  unmaskIrq(index: number, start: number, count: number, bools?: readonly boolean[]): void {
    this.#mask(IrqSetFlag.ACTION_UNMASK, index, start, count, bools, 'unmask');
  }

  #mask(
    action: number,
    index: number,
    start: number,
    count: number,
    bools: readonly boolean[] | undefined,
    verb: string,
  ): void {
    const flags = action | (bools === undefined ? IrqSetFlag.DATA_NONE : IrqSetFlag.DATA_BOOL);
    this.#setIrqs({ flags, index, start, count }, bools === undefined ? {} : { bools }, verb);
  }

  #setIrqs(
    request: { flags: number; index: number; start: number; count: number },
    data: Parameters<typeof encodeSetIrqsRequest>[1],
    verb: string,
  ): void {
    const bytes = encodeSetIrqsRequest(request, data);
    const what = `${verb} interrupt ${request.index} of ${this.name}`;
    callStruct(this.fd.number, VfioRequest.DEVICE_SET_IRQS, bytes, what);
  }

  /** @throws DEVSTATE_E_VFIO when the device cannot be reset by itself */
  reset(): void {
    call(this.fd.number, VfioRequest.DEVICE_RESET, 0, `reset ${this.name}`);
  }

  /**
   * GET or SET of a feature, or both at once. @param flags `FeatureFlag.GET` and the like @param data what is set, or room
   * for what is got @returns the data as the kernel left them
   * @throws DEVSTATE_E_VFIO, errno ENOTTY when the device does not have the feature
   */
  feature(index: number, flags: number, data: Uint8Array = new Uint8Array()): Uint8Array {
    const bytes = encodeFeature(index | flags, data);
    const what = `use feature ${index} of ${this.name}`;
    callStruct(this.fd.number, VfioRequest.DEVICE_FEATURE, bytes, what);
    return bytes.subarray(FEATURE_LENGTH);
  }

  /** {@link feature} with memory that the data point to; `pointer` is the place of its address in `data`. */
  featureWithMemory(
    index: number,
    flags: number,
    data: Uint8Array,
    pointer: number,
    part: MemoryPart,
  ): Uint8Array {
    const bytes = encodeFeature(index | flags, data);
    const place = { pointer: FEATURE_LENGTH + pointer };
    const what = `use feature ${index} of ${this.name}`;
    callMemory(this.fd.number, VfioRequest.DEVICE_FEATURE, bytes, place, part, what);
    return bytes.subarray(FEATURE_LENGTH);
  }

  /** Whether a feature can be got or set: `FeatureFlag.GET`, `FeatureFlag.SET`. */
  hasFeature(index: number, flags: number): boolean {
    const bytes = encodeFeature(index | flags | FeatureFlag.PROBE, new Uint8Array());
    const result = native.vfioCallStruct(this.fd.number, VfioRequest.DEVICE_FEATURE, bytes);
    if (result >= 0) return true;
    if (result === -Errno.ENOTTY || result === -Errno.EINVAL) return false;
    throw vfioError(`ask ${this.name} for feature ${index}`, VfioRequest.DEVICE_FEATURE, -result);
  }

  /**
   * Reads a part of a region with one pread(2): for a register, give its size. @throws DEVSTATE_E_VFIO outside the region,
   * or when it gives less
   */
  readRegion(index: number, offset: number, target: Uint8Array): void {
    const at = this.#position(index, offset, target.length);
    this.#move('read', index, offset, target.length, () =>
      readSync(this.fd.number, target, 0, target.length, at),
    );
  }

  /** Likewise with pwrite(2). */
  writeRegion(index: number, offset: number, source: Uint8Array): void {
    const at = this.#position(index, offset, source.length);
    this.#move('write', index, offset, source.length, () =>
      writeSync(this.fd.number, source, 0, source.length, at),
    );
  }

  #position(index: number, offset: number, length: number): number {
    const { size, offset: start } = this.regionInfo(index);
    if (offset + length <= size) return start + offset;
    const message = `region ${index} of ${this.name} has ${size} bytes; ${length} at ${offset} were asked for`;
    throw new DevstateError('DEVSTATE_E_VFIO', message);
  }

  #move(verb: string, index: number, offset: number, length: number, work: () => number): void {
    const what = `${verb} ${length} bytes at ${offset} of region ${index} of ${this.name}`;
    let done: number;
    try {
      done = work();
    } catch (cause) {
      throw vfioError(what, undefined, -((cause as NodeJS.ErrnoException).errno ?? -Errno.EIO));
    }
    if (done !== length)
      throw new DevstateError('DEVSTATE_E_VFIO', `cannot ${what}: only ${done} were moved`);
  }

  /** A register of a region, 4 bytes little endian. */
  readU32(index: number, offset: number): number {
    const bytes = new Uint8Array(4);
    this.readRegion(index, offset, bytes);
    return viewOf(bytes).getUint32(0, true);
  }

  writeU32(index: number, offset: number, value: number): void {
    const bytes = new Uint8Array(4);
    viewOf(bytes).setUint32(0, value, true);
    this.writeRegion(index, offset, bytes);
  }

  /** Maps a part of a region that can be mapped. @throws DEVSTATE_E_VFIO when it cannot */
  mapRegion(index: number, offset: number, length: number): Mapping {
    const { flags } = this.regionInfo(index);
    const at = this.#position(index, offset, length);
    if ((flags & RegionInfoFlag.MMAP) === 0)
      throw new DevstateError('DEVSTATE_E_VFIO', `region ${index} of ${this.name} cannot be mapped`);
    const protection =
      ((flags & RegionInfoFlag.READ) !== 0 ? Protection.read : 0) |
      ((flags & RegionInfoFlag.WRITE) !== 0 ? Protection.write : 0);
    const what = `map ${length} bytes of region ${index} of ${this.name}`;
    return checkObject(native.map(this.fd.number, at, length, protection), what);
  }

  /** With the last owner of the open file the device is disabled. */
  close(): void {
    this.fd.close();
  }
}
