// SPDX-License-Identifier: Apache-2.0
/**
 * Guest memory that devices have written by DMA during pre-copy. QEMU does not notice those writes, so they are logged
 * by the device server and copied, when the VM has stopped, over what QEMU's own stream has left at the destination.
 */

import type { MigrationClient } from '../../client/index.js';
import { DevstateError } from '../../errors.js';
import { dirtyRanges, type PageBitmap } from '../../migration/index.js';
import { type DmaMapEntry, DmaMapFlag, type DmaRange, indexAfter } from '../../wire/index.js';

export const LOG_PAGE_SIZE = 4096;
/** Guest memory that one report covers: its bitmap is 512 KiB. */
const REPORT_LENGTH = 2 ** 34;
/** More maps than so many are reported together: a message for each of 65,535 would take seconds of the pause. */
const FEW_MAPS = 64;
/** Memory between two maps that is reported along: 2 KiB of bitmap, less than a message costs. */
const MAX_REPORTED_GAP = 2 ** 26;
const REPORTS_IN_FLIGHT = 4;
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
      await collectMaps(device, maps, dirty);
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

async function collectMaps(
  device: MigrationClient,
  maps: readonly DmaMapEntry[],
  dirty: PageBitmap,
): Promise<void> {
  const single = maps
    .filter(({ flags }) => (flags & DmaMapFlag.WRITE) !== 0)
    .map(({ address, size }) => ({ iova: address, length: size }));
  if (single.length > FEW_MAPS) {
    try {
      await collectRanges(device, joinRanges(single), dirty);
      return;
    } catch (error) {
      // A server of others may report what is mapped only. What it has reported so far is in `dirty`.
      if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_REFUSED') throw error;
    }
  }
  await collectRanges(device, single, dirty);
}

async function collectRanges(
  device: MigrationClient,
  ranges: readonly DmaRange[],
  dirty: PageBitmap,
): Promise<void> {
  const reports = splitRanges(ranges, REPORT_LENGTH);
  let failed: { error: unknown } | undefined;
  const worker = async (): Promise<void> => {
    for (let next = reports.next(); next.done !== true && failed === undefined; next = reports.next()) {
      const { iova, length } = next.value;
      try {
        const bitmap = await device.reportLogging({ iova, length, pageSize: LOG_PAGE_SIZE });
        for (const range of dirtyRanges(bitmap, iova, length, LOG_PAGE_SIZE)) {
          dirty.add(range.iova / LOG_PAGE_SIZE, Math.ceil((range.iova + range.length) / LOG_PAGE_SIZE) - 1);
        }
      } catch (error) {
        // All that are under way are waited for: the server has forgotten what it reports.
        failed ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: REPORTS_IN_FLIGHT }, worker));
  if (failed !== undefined) throw failed.error;
}

/** Ranges with little between them, in one. */
function joinRanges(ranges: readonly DmaRange[]): DmaRange[] {
  const joined: { iova: number; length: number }[] = [];
  for (const { iova, length } of [...ranges].sort((a, b) => a.iova - b.iova)) {
    const last = joined.at(-1);
    if (last !== undefined && iova - (last.iova + last.length) <= MAX_REPORTED_GAP)
      last.length = iova + length - last.iova;
    else joined.push({ iova, length });
  }
  return joined;
}

/** `ranges` in pieces of at most `length` bytes. */
export function* splitRanges(ranges: Iterable<DmaRange>, length: number): Generator<DmaRange> {
  for (const range of ranges) {
    for (let at = 0; at < range.length; at += length) {
      yield { iova: range.iova + at, length: Math.min(length, range.length - at) };
    }
  }
}

/**
 * Joins ranges with a small gap between them, where all of it is mapped. What lies in the gap is the same at both ends,
 * and copying it once more costs less than another message.
 */
export function mergeOverGaps(ranges: readonly DmaRange[], maps: readonly DmaMapEntry[]): DmaRange[] {
  const merged: { iova: number; length: number }[] = [];
  const sorted = [...maps].sort((a, b) => a.address - b.address);
  for (const { iova, length } of ranges) {
    const last = merged.at(-1);
    const isClose = last !== undefined && iova - (last.iova + last.length) <= MAX_GAP;
    const map = isClose ? sorted[indexAfter(sorted, last.iova) - 1] : undefined;
    if (isClose && map !== undefined && iova + length <= map.address + map.size) {
      last.length = iova + length - last.iova;
    } else merged.push({ iova, length });
  }
  return merged;
}
