// SPDX-License-Identifier: Apache-2.0
/** A device as one of several processes operates it: each access makes sure first that it is this process's turn. */

import { DevstateError } from '../errors.js';
import { type BundleEntry, FdKind } from '../handoff/index.js';
import { check, native } from '../native/index.js';
import { closeAll, Fd } from '../transport/index.js';
import { CONFIG_LENGTH, type DeviceDocument } from './assignment-document.js';
import type { VfioDevice } from './device.js';
import type { GroupId } from './group.js';
import { DeviceFlag, PciRegion, type RegionInfo } from './uapi/index.js';

/** Throws DEVSTATE_E_VFIO_LEASE unless this process may operate the devices. */
export type RequireLease = () => void;

/** What a reset clears or a driver sets, and nothing changes by itself: ids, COMMAND, BARs, interrupt line. */
const SETTLED: readonly (readonly [offset: number, length: number])[] = [
  [0x00, 4],
  [0x04, 2],
  [0x10, 24],
  [0x3c, 1],
];

export const deviceFdName = (device: string): string => `device:${device}`;
const vectorName = (device: string, index: number, vector: number): string =>
  `irq:${device}:${index}:${vector}`;

export class AssignedDevice {
  /** What it is operated by, when the lease is no matter: what it tells of itself, say. */
  readonly raw: VfioDevice;
  /** `null` for one that was opened by its own file. */
  readonly group: GroupId | null;
  readonly #requireLease: RequireLease;
  /** Eventfds by interrupt index. */
  readonly #vectors = new Map<number, Fd[]>();

  constructor(device: VfioDevice, group: GroupId | null, requireLease: RequireLease) {
    this.raw = device;
    this.group = group;
    this.#requireLease = requireLease;
  }

  get name(): string {
    return this.raw.name;
  }

  /** See `VfioDevice.readRegion`. @throws DEVSTATE_E_VFIO_LEASE besides */
  readRegion(index: number, offset: number, target: Uint8Array): void {
    this.#requireLease();
    this.raw.readRegion(index, offset, target);
  }

  writeRegion(index: number, offset: number, source: Uint8Array): void {
    this.#requireLease();
    this.raw.writeRegion(index, offset, source);
  }

  readU32(index: number, offset: number): number {
    this.#requireLease();
    return this.raw.readU32(index, offset);
  }

  writeU32(index: number, offset: number, value: number): void {
    this.#requireLease();
    this.raw.writeU32(index, offset, value);
  }

  /** Has `count` vectors of an interrupt signal eventfds, new ones. @throws DEVSTATE_E_VFIO when it has fewer */
  arm(index: number, count: number): readonly Fd[] {
    this.#requireLease();
    const eventfds: Fd[] = [];
    try {
      for (let vector = 0; vector < count; vector++)
        eventfds.push(new Fd(check(native.eventfdCreate(0), 'make an eventfd')));
      this.raw.setTriggers(index, 0, eventfds);
    } catch (error) {
      closeAll(eventfds);
      throw error;
    }
    closeAll(this.#vectors.get(index) ?? []);
    this.#vectors.set(index, eventfds);
    return eventfds;
  }

  disarm(index: number): void {
    this.#requireLease();
    this.raw.disableIrq(index);
    closeAll(this.#vectors.get(index) ?? []);
    this.#vectors.delete(index);
  }

  /** What a vector signals. It is this object's. @throws DEVSTATE_E_VFIO when it is not armed */
  eventfd(index: number, vector: number): Fd {
    const fd = this.#vectors.get(index)?.[vector];
    if (fd !== undefined) return fd;
    throw new DevstateError(
      'DEVSTATE_E_VFIO',
      `vector ${vector} of interrupt ${index} of ${this.name} is not armed`,
    );
  }

  /** How often a vector was signalled since it was asked last. The interrupts of a move are in it. */
  takeInterrupts(index: number, vector: number): number {
    this.#requireLease();
    return Math.max(native.eventfdRead(this.eventfd(index, vector).number), 0);
  }

  /** @throws DEVSTATE_E_VFIO when the device has no reset of its own */
  reset(): void {
    this.#requireLease();
    this.raw.reset();
  }

  /** What goes over. */
  entries(): BundleEntry[] {
    const vectors = [...this.#vectors].flatMap(([index, fds]) =>
      fds.map((fd, vector) => ({ kind: FdKind.EVENTFD, name: vectorName(this.name, index, vector), fd })),
    );
    return [{ kind: FdKind.VFIO_DEVICE, name: deviceFdName(this.name), fd: this.raw.fd }, ...vectors];
  }

  /** What the next process is to know, and finds again in the device. */
  describe(): DeviceDocument {
    const { flags } = this.raw.info();
    return {
      name: this.name,
      group: this.group,
      flags,
      regions: this.#regions().map(({ index, size, flags }) => ({ index, size, flags })),
      config: this.#config(flags),
      interrupts: [...this.#vectors].map(([index, { length: vectors }]) => ({ index, vectors })),
    };
  }

  #regions(): RegionInfo[] {
    const { regions } = this.raw.info();
    const there: RegionInfo[] = [];
    for (let index = 0; index < regions; index++) {
      // VGA is counted whether or not the device has it, and asking for it is refused then.
      if (index === PciRegion.VGA) continue;
      const info = this.raw.regionInfo(index);
      if (info.size > 0) there.push(info);
    }
    return there;
  }

  /** The first part of config space of a PCI device. */
  #config(flags: number): Uint8Array<ArrayBuffer> | null {
    if ((flags & DeviceFlag.PCI) === 0) return null;
    const config = new Uint8Array(CONFIG_LENGTH);
    this.raw.readRegion(PciRegion.CONFIG, 0, config);
    return config;
  }

  /** Takes the eventfds that its description names out of a bundle. */
  adoptVectors(document: DeviceDocument, take: (name: string) => Fd): void {
    for (const { index, vectors } of document.interrupts) {
      if (this.#vectors.has(index)) throw changed(this.name, `interrupt ${index} is armed twice`);
      const fds: Fd[] = [];
      this.#vectors.set(index, fds);
      for (let vector = 0; vector < vectors; vector++) fds.push(take(vectorName(this.name, index, vector)));
    }
  }

  /** @throws DEVSTATE_E_VFIO_STATE unless the device is as it is described: the same, and not reset since */
  requireState(document: DeviceDocument): void {
    const now = this.describe();
    if (JSON.stringify([now.flags, now.regions]) !== JSON.stringify([document.flags, document.regions]))
      throw changed(this.name, 'it has other regions than it was given with');
    if (now.config === null || document.config === null) return;
    const [is, was] = [Buffer.from(now.config), Buffer.from(document.config)];
    for (const [offset, length] of SETTLED) {
      const found = is.subarray(offset, offset + length);
      const expected = was.subarray(offset, offset + length);
      if (found.equals(expected)) continue;
      const where = `config space at 0x${offset.toString(16)}`;
      throw changed(this.name, `${where} is ${found.toString('hex')}, and was ${expected.toString('hex')}`);
    }
  }

  close(): void {
    for (const fds of this.#vectors.values()) closeAll(fds);
    this.#vectors.clear();
    this.raw.close();
  }
}

function changed(name: string, what: string): DevstateError {
  const message = `${name} is not in the state in which it was given: ${what}; somebody has reset it or written to it`;
  return new DevstateError('DEVSTATE_E_VFIO_STATE', message);
}
