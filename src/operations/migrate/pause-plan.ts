// SPDX-License-Identifier: Apache-2.0
/**
 * What the pause will be made of, from what was measured in this run, and what to do about it. Pure.
 *
 *     downtime  =  fixed (view, log, state)  +  pages that devices wrote / rate of copying  +  QEMU's own part
 *
 * A device that has written, or until the next look will have, more than can be copied in its share is asked to write by
 * messages: slower for the guest, but QEMU notices those writes and sends the pages while the VM runs.
 */

/** The pages' share of what is left of the pause. A choice, not a measurement: QEMU's last pass over RAM needs as much. */
const PAGES_SHARE = 1 / 2;
/** Where the rest takes all of it, the pause is too long anyway, and the guest need not be slow for a few pages more. */
const PAGES_LEAST_SHARE = 1 / 8;
/** What QEMU gets at least, of the whole pause: with nothing it would never switch over. */
const QEMU_LEAST_SHARE = 1 / 4;

/** What is known of one device. */
export interface DeviceLoad {
  readonly id: string;
  /** Bytes that must be copied when the VM stands. */
  readonly pendingBytes: number;
  /** Bytes per ms by which those grow. 0 once it writes by messages. */
  readonly growth: number;
  /** Bytes per ms that copying reaches. */
  readonly rate: number;
  /** It can be told to write by messages, and was not yet. */
  readonly canSwitch: boolean;
}

export interface PauseInputs {
  /** What was asked for, ms. */
  readonly downtimeMs: number;
  /** What takes its time however much was written, ms. */
  readonly fixedMs: number;
  /** Until the next look, ms. */
  readonly lookMs: number;
  readonly devices: readonly DeviceLoad[];
}

export interface PausePlan {
  /** Devices that are to write by messages from now on. */
  readonly toMessages: readonly string[];
  readonly fixedMs: number;
  /** Copying what is there at the next look. */
  readonly pagesMs: number;
  /** What QEMU may take, its `downtime-limit`. */
  readonly qemuMs: number;
  readonly totalMs: number;
}

export function planPause({ downtimeMs, fixedMs, lookMs, devices }: PauseInputs): PausePlan {
  const left = Math.max(0, downtimeMs - fixedMs);
  const budget = Math.max(left * PAGES_SHARE, downtimeMs * PAGES_LEAST_SHARE);
  const now = (device: DeviceLoad): number => device.pendingBytes / device.rate;
  const more = (device: DeviceLoad): number => (device.growth * lookMs) / device.rate;
  let pagesMs = devices.reduce((sum, device) => sum + now(device) + more(device), 0);
  const toMessages: string[] = [];
  // Those that add most first: each costs its guest something.
  const candidates = devices.filter((device) => device.canSwitch && more(device) > 0);
  candidates.sort((a, b) => more(b) - more(a) || (a.id < b.id ? -1 : 1));
  for (const device of candidates) {
    if (pagesMs <= budget) break;
    toMessages.push(device.id);
    pagesMs -= more(device);
  }
  const qemuMs = Math.max(left - pagesMs, downtimeMs * QEMU_LEAST_SHARE);
  return { toMessages, fixedMs, pagesMs, qemuMs, totalMs: fixedMs + pagesMs + qemuMs };
}
