// SPDX-License-Identifier: Apache-2.0
/** Keeps the pause to come within what was asked for: measures while the VM runs, and acts on what `planPause` says. */

import { forEachDevice } from '../phased.js';
import { Stopwatch } from '../stopwatch.js';
import { delay, unlessAborted } from '../waiting.js';
import { LOG_PAGE_SIZE } from './dirty-pages.js';
import { expectedPause, loadOf, type MeasuredDevice } from './expected-pause.js';
import type { Parties, RehearsedDevice } from './parties.js';
import { type PausePlan, planPause } from './pause-plan.js';
import { changeDowntime, type SettingsOwner, type SettingsRecord } from './qemu-settings.js';
import type { ExpectedPause } from './types.js';
import { WriteRate } from './write-rate.js';

/** Between two looks, ms: a fifth of a second is the grain of everything in pre-copy. */
export const LOOK_MS = 200;
/** Looks may take this part of the time, so that the logs of a large VM are read more seldom. */
const LOOK_SHARE = 1 / 10;
/** The first look back, ms: shorter, and one request of the guest's more or less would decide. */
const FIRST_WINDOW_MS = 50;
/** A change of QEMU's limit that is not worth a command. */
const SMALL_CHANGE = 0.1;

/** What is measured of one device, and what was done about it. */
interface ControlledDevice extends MeasuredDevice {
  readonly device: RehearsedDevice;
  readonly writes: WriteRate;
  /** It writes by messages now, which QEMU notices: its pages become no more. */
  byMessage: boolean;
  /** It was not told yet to write by messages. */
  canSwitch: boolean;
}

export class PauseControl {
  readonly #run: Pick<Parties, 'options' | 'signal'>;
  readonly #devices: readonly ControlledDevice[];
  #plan: PausePlan;
  #expected: ExpectedPause | undefined;
  #qemuMs: number;
  #logMs = 0;
  #lookMs = LOOK_MS;
  #nextLook = 0;

  constructor(run: Parties<RehearsedDevice>) {
    this.#run = run;
    this.#devices = run.devices.map((device) => ({
      id: device.id,
      device,
      copier: device.copier,
      writes: new WriteRate(device.source.device, device.dirty),
      byMessage: false,
      canSwitch: true,
    }));
    this.#plan = planPause({ ...run.options, fixedMs: 0, lookMs: 0, devices: [] });
    this.#qemuMs = this.#plan.qemuMs;
  }

  /** What QEMU may take of the pause, ms. */
  get qemuMs(): number {
    return this.#qemuMs;
  }

  /**
   * Before QEMU reads its first page: how fast pages can be copied, and how fast the devices write them. Everything that
   * was written until now QEMU will read for itself.
   */
  async begin(): Promise<void> {
    const watch = new Stopwatch();
    await this.#collect();
    for (const { device } of this.#devices) await unlessAborted(device.copier.rehearse(), this.#run.signal);
    await delay(Math.max(0, FIRST_WINDOW_MS - watch.elapsed));
    await this.#collect();
    await this.#decide();
    this.#qemuMs = this.#plan.qemuMs;
    // Once more after the switch: what was written before it is in here.
    await this.#collect();
    for (const { writes } of this.#devices) writes.forget();
  }

  /** Looks again, unless the last time was just now. @param owner whose limit for QEMU's part is changed if need be */
  async look(owner: SettingsOwner & { readonly settings: SettingsRecord }): Promise<void> {
    if (performance.now() < this.#nextLook) return;
    const watch = new Stopwatch();
    await this.#collect();
    // One after the other: at the stop too they share this machine.
    for (const { device } of this.#devices) {
      const { copier, dirty } = device;
      if (dirty.count > 0) await copier.sample(dirty.ranges(LOG_PAGE_SIZE), this.#run.signal);
    }
    await this.#decide();
    if (Math.abs(this.#plan.qemuMs - this.#qemuMs) > this.#qemuMs * SMALL_CHANGE) {
      await changeDowntime(owner, this.#qemuMs, this.#plan.qemuMs);
      this.#qemuMs = this.#plan.qemuMs;
    }
    this.#lookMs = Math.max(LOOK_MS, watch.elapsed / LOOK_SHARE);
    this.#nextLook = performance.now() + this.#lookMs;
  }

  /** What the pause is expected to be, as of the last look. */
  get expected(): ExpectedPause | undefined {
    return this.#expected;
  }

  /** Whether a device was told to write by messages, and does. */
  writesByMessage({ id }: { readonly id: string }): boolean {
    return this.#devices.some((device) => device.id === id && device.byMessage);
  }

  async #collect(): Promise<void> {
    const watch = new Stopwatch();
    await forEachDevice({ devices: this.#devices }, async ({ writes, byMessage }) => {
      // A device that writes by messages adds nothing.
      if (byMessage && writes.bytesPerMs === 0) return;
      await writes.look();
    });
    this.#logMs = watch.elapsed;
  }

  async #decide(): Promise<void> {
    const { options, signal } = this.#run;
    const devices = this.#devices;
    const state = Math.max(0, ...(await Promise.all(devices.map(({ device }) => stateMs(device)))));
    const view = Math.max(0, ...devices.map(({ device }) => device.rehearsed?.viewMs ?? 0));
    this.#plan = planPause({
      downtimeMs: options.downtimeMs,
      fixedMs: view + this.#logMs + state,
      lookMs: this.#lookMs,
      devices: devices.map(loadOf),
    });
    const switched = devices.filter(({ id }) => this.#plan.toMessages.includes(id));
    for (const one of switched) {
      one.canSwitch = false;
      one.byMessage = await unlessAborted(one.device.source.device.writeByMessage(true), signal);
    }
    // One that cannot is none to count on.
    if (switched.some(({ byMessage }) => !byMessage)) await this.#decide();
    this.#expected = expectedPause(this.#plan, devices);
  }
}

/** The last state, at the rate at which its parts have come so far; 0 while none has. */
async function stateMs({ source, stream }: RehearsedDevice): Promise<number> {
  const { bytesPerMs } = stream;
  return bytesPerMs === 0 ? 0 : ((await source.device.dataSize()) ?? 0) / bytesPerMs;
}
