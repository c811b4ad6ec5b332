// SPDX-License-Identifier: Apache-2.0
/** From what was measured of the devices to what the pause is planned with, and to what is said of it. Pure. */

import type { PageCopier } from './page-copy.js';
import type { DeviceLoad, PausePlan } from './pause-plan.js';
import type { ExpectedPause } from './types.js';
import type { WriteRate } from './write-rate.js';

/** What is known of one device. */
export interface MeasuredDevice {
  readonly id: string;
  readonly writes: Pick<WriteRate, 'pendingBytes' | 'bytesPerMs'>;
  readonly copier: Pick<PageCopier, 'bytesPerMs' | 'way'>;
  /** It writes by messages now. */
  readonly byMessage: boolean;
  /** It can be told to. */
  readonly canSwitch: boolean;
}

export function loadOf({ id, writes, copier, byMessage, canSwitch }: MeasuredDevice): DeviceLoad {
  return {
    id,
    pendingBytes: writes.pendingBytes,
    growth: byMessage ? 0 : (writes.bytesPerMs ?? 0),
    // What was never measured has nothing to be copied.
    rate: copier.bytesPerMs ?? Number.POSITIVE_INFINITY,
    canSwitch,
  };
}

export function expectedPause(plan: PausePlan, devices: readonly MeasuredDevice[]): ExpectedPause {
  const { fixedMs, pagesMs, qemuMs, totalMs, toMessages } = plan;
  const perSecond = (bytesPerMs = 0): number => Math.round(bytesPerMs * 1000);
  return {
    totalMs,
    fixedMs,
    pagesMs,
    qemuMs,
    devices: devices.map(({ id, writes, copier, byMessage }) => ({
      id,
      pageBytes: writes.pendingBytes,
      dirtyBytesPerSecond: perSecond(writes.bytesPerMs),
      copyBytesPerSecond: perSecond(copier.bytesPerMs),
      copiedBy: copier.way,
      byMessage: byMessage || toMessages.includes(id),
    })),
  };
}
