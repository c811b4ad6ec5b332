// SPDX-License-Identifier: Apache-2.0
/**
 * A small but real device of the SDK: registers, memory, a DMA engine, MSI-X, INTx, a state of any size, and a hook at
 * every step that a test can make fail or wait.
 *
 *     BAR 0  0x00 ID u32          reads 0x5c4a7c40
 *            0x08 DMA_ADDRESS u64
 *            0x10 DMA_LENGTH u32  at most the size of BAR 2
 *            0x14 DMA_COMMAND u32 1: guest → BAR 2, 2: BAR 2 → guest; the write ends when the transfer has
 *            0x18 RAISE u32       raises MSI-X vector n
 *            0x1c INTX u32        drives the line
 *            0x20 SLOW u32        a read waits for the hook `slow`
 *            0x100                256 bytes that keep what is written
 *     BAR 2  the memory that is the device's state
 */

import {
  type Bar,
  type Device,
  type DeviceHost,
  expressCapability,
  msixCapability,
  PciConfigSpace,
  type ResetReason,
} from '../../src/device/index.js';
import { Errno, RequestError } from '../../src/wire/index.js';
import { ScratchState } from './scratch-state.js';

export const Register = {
  ID: 0x00,
  DMA_ADDRESS: 0x08,
  DMA_LENGTH: 0x10,
  DMA_COMMAND: 0x14,
  RAISE: 0x18,
  INTX: 0x1c,
  SLOW: 0x20,
  KEPT: 0x100,
} as const;
export const SCRATCH_ID = 0x5c4a7c40;
export const MSIX_VECTORS = 40;
const REGISTERS_SIZE = 4096;

export interface ScratchOptions {
  /** Bytes of state: a power of two. */
  readonly stateSize?: number;
  /** Bytes of one record of it. */
  readonly chunk?: number;
  readonly parameter?: string | number;
  /** MSI-X vectors; 40 unless given. */
  readonly vectors?: number;
}

export class ScratchDevice implements Device {
  readonly model;
  readonly producer = { name: 'scratch', version: '1.0' };
  readonly bars: readonly Bar[];
  readonly interruptCounts;
  readonly config: PciConfigSpace;
  readonly state: ScratchState;
  readonly formats: readonly ScratchState[];
  /** Every step since the test looked last. */
  calls: string[] = [];
  /** Called at each step; what it throws the step throws, and it waits for what it returns. */
  hook: (step: string) => void | Promise<void> = () => {};
  running = true;
  holdsLock = true;
  #registers = new Uint8Array(REGISTERS_SIZE);
  #host: DeviceHost | undefined;

  constructor(options: ScratchOptions = {}) {
    const size = options.stateSize ?? 4096;
    this.model = { uri: 'devstate.org/scratch', parameters: { size, flavour: options.parameter ?? 'plain' } };
    this.bars = [
      { index: 0, size: REGISTERS_SIZE, kind: 'memory32' },
      { index: 2, size, kind: 'memory64' },
    ];
    const identity = {
      vendorId: 0x1b36,
      deviceId: 0x00ff,
      subsystemVendorId: 0x1af4,
      subsystemId: 0x1100,
      revision: 1,
      classCode: 0xff0000,
      intx: true,
    };
    const vectors = options.vectors ?? MSIX_VECTORS;
    this.interruptCounts = { intx: true, msi: 0, msix: vectors };
    const msix = { vectors, tableBar: 0, tableOffset: 0x800, pbaBar: 0, pbaOffset: 0xc00 };
    this.config = new PciConfigSpace(identity, this.bars, [msixCapability(msix), expressCapability()]);
    this.state = new ScratchState({ size, chunk: options.chunk ?? 1024, hook: (step) => this.#step(step) });
    this.formats = [this.state];
  }

  get host(): DeviceHost {
    if (this.#host === undefined) throw new Error('not attached');
    return this.#host;
  }

  attach(host: DeviceHost): void {
    this.#host = host;
  }

  #step(step: string): void | Promise<void> {
    this.calls.push(step);
    return this.hook(step);
  }

  /** The steps since the last call. */
  takeCalls(): string[] {
    return this.calls.splice(0);
  }

  readRegion(region: number, offset: number, target: Uint8Array): void | Promise<void> {
    if (region === 2) {
      target.set(this.state.memory.subarray(offset, offset + target.length));
      return;
    }
    const bytes = this.#registers.slice(offset, offset + target.length);
    if (offset === Register.ID && target.length === 4)
      new DataView(bytes.buffer).setUint32(0, SCRATCH_ID, true);
    target.set(bytes);
    if (offset === Register.SLOW) return this.#step('slow');
  }

  writeRegion(region: number, offset: number, data: Uint8Array): void | Promise<void> {
    if (region === 2) {
      this.state.write(offset, data);
      return;
    }
    this.#registers.set(data, offset);
    const value = new DataView(this.#registers.buffer).getUint32(offset & ~3, true);
    if (offset === Register.RAISE) this.host.interrupts.triggerMsix(value);
    else if (offset === Register.INTX) this.host.interrupts.setIntx(value !== 0);
    else if (offset === Register.DMA_COMMAND) return this.#transfer(value);
  }

  #transfer(command: number): void | Promise<void> {
    const view = new DataView(this.#registers.buffer);
    const address = Number(view.getBigUint64(Register.DMA_ADDRESS, true));
    const length = view.getUint32(Register.DMA_LENGTH, true);
    if (!this.running || length > this.state.memory.length)
      throw new RequestError(Errno.EINVAL, 'no DMA now');
    const bytes = this.state.memory.subarray(0, length);
    if (command === 2) return this.host.memory.write(address, bytes);
    const done = this.host.memory.read(address, bytes);
    this.state.touchAll();
    return done;
  }

  async reset(reason: ResetReason): Promise<void> {
    await this.#step(`reset ${reason}`);
    this.#registers.fill(0);
    this.state.memory.fill(0);
    this.state.touchAll();
    this.config.reset();
  }

  async quiesce(): Promise<void> {
    await this.#step('quiesce');
    this.running = false;
  }

  async resume(): Promise<void> {
    await this.#step('resume');
    this.running = true;
  }

  async releaseExclusive(): Promise<void> {
    await this.#step('releaseExclusive');
    this.holdsLock = false;
  }

  async acquireExclusive(): Promise<void> {
    await this.#step('acquireExclusive');
    this.holdsLock = true;
  }
}
