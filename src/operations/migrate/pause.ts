// SPDX-License-Identifier: Apache-2.0
/** Keeps the pause to come within what was asked for: measures while the VM runs, and acts on what `planPause` says. */

import { delay, unlessAborted } from '../waiting.js';
import { collectDirty, LOG_PAGE_SIZE } from './dirty-pages.js';
import { type PausePlan, planPause } from './pause-plan.js';
import { changeDowntime } from './qemu-settings.js';
import { forEachDevice, type Run, type RunDevice, Stopwatch } from './run.js';
import type { ExpectedPause } from './types.js';

/** Between two looks, ms: a fifth of a second is the grain of everything in pre-copy. */
const LOOK_MS = 200;
/** Looks may take this part of the time, so that the logs of a large VM are read more seldom. */
const LOOK_SHARE = 1 / 10;
/** The first look back, ms: shorter, and one request of the guest's more or less would decide. */
const FIRST_WINDOW_MS = 50;
/** A change of QEMU's limit that is not worth a command. */
const SMALL_CHANGE = 0.1;

/** What is measured of one device beside the rate of copying. */
interface Growth {
  /** Pages that had been written at the last look, and when that was. */
  pages: number;
  at: number;
  /** Bytes per ms since the look before. */
  bytesPerMs: number;
}

export class PauseControl {
  readonly #run: Run;
  readonly #growth = new Map<RunDevice, Growth>();
  #plan: PausePlan;
  #expected: ExpectedPause | undefined;
  #qemuMs: number;
  #logMs = 0;
  #lookMs = LOOK_MS;
  #nextLook = 0;

  constructor(run: Run) {
    this.#run = run;
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
    const { devices } = this.#run;
    const watch = new Stopwatch();
    await this.#collect();
    for (const device of devices) await unlessAborted(device.copier.rehearse(), this.#run.signal);
    await delay(Math.max(0, FIRST_WINDOW_MS - watch.elapsed));
    await this.#collect();
    await this.#decide();
    this.#qemuMs = this.#plan.qemuMs;
    // Once more after the switch: what was written before it is in here.
    await this.#collect();
    for (const device of devices) {
      device.dirty.clear();
      const { bytesPerMs = 0 } = this.#growth.get(device) ?? {};
      this.#growth.set(device, { pages: 0, at: performance.now(), bytesPerMs });
    }
  }

  /** Looks again, unless the last time was just now. */
  async look(): Promise<void> {
    if (performance.now() < this.#nextLook) return;
    const watch = new Stopwatch();
    await this.#collect();
    // One after the other: at the stop too they share this machine.
    for (const { copier, dirty } of this.#run.devices) {
      if (dirty.count > 0) await copier.sample(dirty.ranges(LOG_PAGE_SIZE), this.#run.signal);
    }
    await this.#decide();
    if (Math.abs(this.#plan.qemuMs - this.#qemuMs) > this.#qemuMs * SMALL_CHANGE) {
      await changeDowntime(this.#run, this.#qemuMs, this.#plan.qemuMs);
      this.#qemuMs = this.#plan.qemuMs;
    }
    this.#lookMs = Math.max(LOOK_MS, watch.elapsed / LOOK_SHARE);
    this.#nextLook = performance.now() + this.#lookMs;
  }

  /** What the pause is expected to be, as of the last look. */
  get expected(): ExpectedPause | undefined {
    return this.#expected;
  }

  #expect(): ExpectedPause {
    const { fixedMs, pagesMs, qemuMs, totalMs } = this.#plan;
    const perSecond = (bytesPerMs: number): number => Math.round(bytesPerMs * 1000);
    const { devices } = this.#run;
    return {
      totalMs,
      fixedMs,
      pagesMs,
      qemuMs,
      devices: devices.map((device) => ({
        id: device.id,
        pageBytes: device.dirty.count * LOG_PAGE_SIZE,
        dirtyBytesPerSecond: perSecond(this.#growth.get(device)?.bytesPerMs ?? 0),
        copyBytesPerSecond: perSecond(device.copier.bytesPerMs ?? 0),
        copiedBy: device.copier.way,
      })),
    };
  }

  async #collect(): Promise<void> {
    const watch = new Stopwatch();
    await forEachDevice(this.#run, async (device) => {
      const { dirty, source } = device;
      // A device that writes by messages adds nothing.
      if (device.byMessage && this.#growth.get(device)?.bytesPerMs === 0) return;
      await collectDirty(source.device, dirty);
      const at = performance.now();
      const before = this.#growth.get(device);
      const bytes = (dirty.count - (before?.pages ?? dirty.count)) * LOG_PAGE_SIZE;
      const bytesPerMs = before === undefined || at <= before.at ? 0 : bytes / (at - before.at);
      this.#growth.set(device, { pages: dirty.count, at, bytesPerMs });
    });
    this.#logMs = watch.elapsed;
  }

  async #decide(): Promise<void> {
    const { devices, options } = this.#run;
    const state = Math.max(0, ...(await Promise.all(devices.map(stateMs))));
    const view = Math.max(0, ...devices.map(({ viewMs }) => viewMs));
    this.#plan = planPause({
      downtimeMs: options.downtimeMs,
      fixedMs: view + this.#logMs + state,
      lookMs: this.#lookMs,
      devices: devices.map((device) => ({
        id: device.id,
        pendingBytes: device.dirty.count * LOG_PAGE_SIZE,
        growth: device.byMessage ? 0 : (this.#growth.get(device)?.bytesPerMs ?? 0),
        // What was never measured has nothing to be copied.
        rate: device.copier.bytesPerMs ?? Number.POSITIVE_INFINITY,
        canSwitch: device.canSwitch,
      })),
    });
    const switched = devices.filter(({ id }) => this.#plan.toMessages.includes(id));
    for (const device of switched) {
      device.canSwitch = false;
      device.byMessage = await unlessAborted(device.source.device.writeByMessage(true), this.#run.signal);
    }
    // One that cannot is none to count on.
    if (switched.some(({ byMessage }) => !byMessage)) await this.#decide();
    this.#expected = this.#expect();
  }
}

/** The last state, at the rate at which its parts have come so far; 0 while none has. */
async function stateMs({ source, stateRate }: RunDevice): Promise<number> {
  if (stateRate === 0) return 0;
  return ((await source.device.dataSize()) ?? 0) / stateRate;
}
