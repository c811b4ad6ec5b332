// SPDX-License-Identifier: Apache-2.0
/**
 * Guest memory that devices have written by DMA during pre-copy. QEMU does not notice those writes, so they are logged
 * by the device server and copied, when the VM has stopped, over what QEMU's own stream has left at the destination.
 */

import type { MigrationClient } from '../../client/index.js';
import { dirtyRanges, type PageBitmap } from '../../migration/index.js';
import { type DmaMapEntry, DmaMapFlag, type DmaRange } from '../../wire/index.js';

export const LOG_PAGE_SIZE = 4096;
/** Guest memory that one report covers: its bitmap is 512 KiB. */
const REPORT_LENGTH = 2 ** 34;
/** Clean memory between dirty pages that is copied along. */
const MAX_GAP = 64 * 1024;

/** Begins to log every write. */
export async function startLog(device: MigrationClient): Promise<void> {
  await device.startLogging({ pageSize: LOG_PAGE_SIZE, ranges: [] });
}

/**
 * Adds to `dirty` what the device has written since the last report.
 * QEMU maps memory anew while a guest boots: what is refused because of that is asked for once more.
 */
export async function collectDirty(device: MigrationClient, dirty: PageBitmap): Promise<void> {
  let maps = await device.dmaMaps();
  for (;;) {
    try {
      for (const map of maps) {
        if ((map.flags & DmaMapFlag.WRITE) !== 0) await collectMap(device, map, dirty);
      }
      return;
    } catch (error) {
      const before = maps;
      maps = await device.dmaMaps();
      if (isSame(before, maps)) throw error;
    }
  }
}

function isSame(before: readonly DmaMapEntry[], now: readonly DmaMapEntry[]): boolean {
  if (before.length !== now.length) return false;
  return before.every((map, index) => {
    const other = now[index];
    return other?.address === map.address && other.size === map.size && other.flags === map.flags;
  });
}

async function collectMap(device: MigrationClient, map: DmaMapEntry, dirty: PageBitmap): Promise<void> {
  for (let at = 0; at < map.size; at += REPORT_LENGTH) {
    const iova = map.address + at;
    const length = Math.min(REPORT_LENGTH, map.size - at);
    const bitmap = await device.reportLogging({ iova, length, pageSize: LOG_PAGE_SIZE });
    for (const range of dirtyRanges(bitmap, iova, length, LOG_PAGE_SIZE)) {
      dirty.add(range.iova / LOG_PAGE_SIZE, Math.ceil((range.iova + range.length) / LOG_PAGE_SIZE) - 1);
    }
  }
}

/**
 * Joins ranges with a small gap between them, where all of it is mapped. What lies in the gap is the same at both ends,
 * and copying it once more costs less than another message.
 */
export function mergeOverGaps(ranges: readonly DmaRange[], maps: readonly DmaMapEntry[]): DmaRange[] {
  const merged: { iova: number; length: number }[] = [];
  for (const { iova, length } of ranges) {
    const last = merged.at(-1);
    const isClose = last !== undefined && iova - (last.iova + last.length) <= MAX_GAP;
    if (
      isClose &&
      maps.some(({ address, size }) => address <= last.iova && iova + length <= address + size)
    ) {
      last.length = iova + length - last.iova;
    } else merged.push({ iova, length });
  }
  return merged;
}
