// SPDX-License-Identifier: Apache-2.0
/**
 * The device of libvfio-user's `samples/server`, so that its sample clients have something to talk to that is not
 * libvfio-user:
 *
 *     BAR 0   8 bytes       write: the second since 1970 (i64) at which the device raises INTx and exercises guest memory,
 *                           at once if it has been; 0 for never
 *                           read: how many seconds ago that was; negative while it is to come
 *     BAR 1   12 KiB        memory without a meaning; the first and the last page can be mapped
 *     INTx    one, an edge: nothing takes it back
 *
 * Where the two differ: docs/conformance.md.
 */

import {
  type Bar,
  type Device,
  type DeviceHost,
  Errno,
  PciConfigSpace,
  RequestError,
} from '../../device/index.js';
import { Alarm, presentSecond } from './alarm.js';
import { exerciseMemory } from './memory-exercise.js';
import { SampleRawState } from './raw-state.js';
import { SharedMemory } from './shared-memory.js';
import { BAR0_SIZE, BAR1_SIZE, PAGE_SIZE, type StatefulSample, type TimerState } from './state.js';
import { SampleStateFormat } from './state-format.js';

const identity = {
  vendorId: 0xdead,
  deviceId: 0xbeef,
  subsystemVendorId: 0xcafe,
  subsystemId: 0xbabe,
  revision: 0,
  classCode: 0,
  intx: true,
};

/** The BARs as PCI can have them, for who sizes them in the config space. */
const CONFIG_BARS = [
  { index: 0, size: 16, kind: 'memory32' },
  { index: 1, size: 4 * PAGE_SIZE, kind: 'memory32' },
] as const;

export class SampleDevice implements Device, StatefulSample {
  readonly model = { uri: 'devstate.org/sample', parameters: {} };
  readonly producer = { name: 'devstate/sample', version: '1.0' };
  readonly config = new PciConfigSpace(identity, CONFIG_BARS, []);
  readonly interruptCounts = { intx: 'edge', msi: 0, msix: 0 } as const;
  readonly bars: readonly Bar[];
  readonly formats = [new SampleStateFormat(this)];
  readonly rawState = new SampleRawState(this);

  readonly #memory = new SharedMemory('sample BAR 1', BAR1_SIZE);
  readonly #alarm = new Alarm(() => this.#ring());
  #host: DeviceHost | undefined;
  #running = true;
  #second = 0n;
  #armed = false;
  /** Settles when guest memory has been exercised. Never rejects. */
  #work: Promise<void> = Promise.resolve();

  constructor() {
    const areas = [0, 2].map((page) => ({ offset: page * PAGE_SIZE, size: PAGE_SIZE }));
    this.bars = [
      { index: 0, size: BAR0_SIZE, kind: 'memory32' },
      { index: 1, size: BAR1_SIZE, kind: 'memory32', memory: { fd: this.#memory.fd, offset: 0, areas } },
    ];
  }

  attach(host: DeviceHost): void {
    this.#host = host;
  }

  /** Releases BAR 1, when it is not served any more. */
  close(): void {
    this.#alarm.clear();
    this.#memory.close();
  }

  readRegion(region: number, offset: number, target: Uint8Array): void {
    if (region === 1) target.set(this.bar1.subarray(offset, offset + target.length));
    else bar0View(target).setBigInt64(0, BigInt.asIntN(64, presentSecond() - this.#second), true);
  }

  writeRegion(region: number, offset: number, data: Uint8Array): void {
    if (region === 1) this.bar1.set(data, offset);
    else this.#setAlarm(bar0View(data).getBigInt64(0, true));
  }

  /** A second that has come meanwhile rings at once; 0 takes the alarm back. */
  #setAlarm(second: bigint): void {
    this.#second = second;
    this.#armed = second !== 0n;
    this.#updateAlarm();
  }

  #updateAlarm(): void {
    if (this.#running && this.#armed) this.#alarm.set(this.#second);
    else this.#alarm.clear();
  }

  #ring(): void {
    const host = this.#host;
    if (host === undefined) return;
    this.#armed = false;
    host.interrupts.triggerIntx();
    this.#work = this.#work.then(() => exerciseMemory(host));
  }

  async reset(): Promise<void> {
    this.#alarm.clear();
    await this.#work;
    this.#second = 0n;
    this.#armed = false;
    this.bar1.fill(0);
    this.config.reset();
  }

  async quiesce(): Promise<void> {
    this.#running = false;
    this.#alarm.clear();
    await this.#work;
  }

  resume(): void {
    this.#running = true;
    this.#updateAlarm();
  }

  get bar1(): Uint8Array {
    return this.#memory.bytes;
  }

  get configBytes(): Uint8Array {
    return this.config.bytes;
  }

  captureTimer(): TimerState {
    const interrupt = this.#host?.interrupts.intxPending ?? false;
    return { second: this.#second, armed: this.#armed, interrupt };
  }

  restore(bar1: Uint8Array, timer: TimerState, config?: Uint8Array): void {
    if (config !== undefined) this.config.load(config);
    this.bar1.set(bar1);
    this.#second = timer.second;
    this.#armed = timer.armed;
    if (timer.interrupt) this.#host?.interrupts.triggerIntx();
  }
}

/** BAR 0 is one register of 64 bits. @throws RequestError EINVAL for a part of it */
function bar0View(bytes: Uint8Array): DataView {
  if (bytes.length !== BAR0_SIZE) throw new RequestError(Errno.EINVAL, 'BAR 0 is accessed with 8 bytes');
  return new DataView(bytes.buffer, bytes.byteOffset, BAR0_SIZE);
}
