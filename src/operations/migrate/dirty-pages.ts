// SPDX-License-Identifier: Apache-2.0
/**
 * Guest memory that devices have written by DMA during pre-copy. QEMU does not notice those writes, so they are logged
 * by the device server and copied, when the VM has stopped, over what QEMU's own stream has left at the destination.
 */

import type { MigrationClient } from '../../client/index.js';
import { dirtyRanges } from '../../migration/index.js';
import { type DmaMapEntry, DmaMapFlag, type DmaRange } from '../../wire/index.js';

export const LOG_PAGE_SIZE = 4096;
/** Guest memory that one report covers: its bitmap is 512 KiB. */
const REPORT_LENGTH = 2 ** 34;
/** Copies under way at a time. */
const COPIES_IN_FLIGHT = 4;

/** Begins to log every write. */
export async function startLog(device: MigrationClient): Promise<void> {
  await device.startLogging({ pageSize: LOG_PAGE_SIZE, ranges: [] });
}

/** What the device has written since the last report, in whole pages. */
export async function collectDirty(device: MigrationClient): Promise<DmaRange[]> {
  const dirty: DmaRange[] = [];
  for (const map of await device.dmaMaps()) {
    if ((map.flags & DmaMapFlag.WRITE) !== 0) dirty.push(...(await collectMap(device, map)));
  }
  return dirty;
}

async function collectMap(device: MigrationClient, map: DmaMapEntry): Promise<DmaRange[]> {
  const dirty: DmaRange[] = [];
  for (let at = 0; at < map.size; at += REPORT_LENGTH) {
    const range = {
      iova: map.address + at,
      length: Math.min(REPORT_LENGTH, map.size - at),
      pageSize: LOG_PAGE_SIZE,
    };
    const bitmap = await device.reportLogging(range);
    dirty.push(...dirtyRanges(bitmap, range.iova, range.length, LOG_PAGE_SIZE));
  }
  return dirty;
}

export function countPages(ranges: readonly DmaRange[]): number {
  return ranges.reduce((pages, { length }) => pages + Math.ceil(length / LOG_PAGE_SIZE), 0);
}

/** Copies ranges of guest memory from the stopped source to the stopped destination. @returns bytes copied */
export async function copyMemory(
  source: MigrationClient,
  destination: MigrationClient,
  ranges: readonly DmaRange[],
): Promise<number> {
  const length = Math.min(source.client.maxTransfer, destination.client.maxTransfer);
  const pieces = splitRanges(ranges, length);
  let bytes = 0;
  const worker = async (): Promise<void> => {
    const buffer = new Uint8Array(length);
    for (let piece = pieces.next(); piece.done !== true; piece = pieces.next()) {
      const data = buffer.subarray(0, piece.value.length);
      await source.readMemory(piece.value.iova, data);
      await destination.writeMemory(piece.value.iova, data);
      bytes += data.length;
    }
  };
  await Promise.all(Array.from({ length: COPIES_IN_FLIGHT }, worker));
  return bytes;
}

function* splitRanges(ranges: readonly DmaRange[], length: number): Generator<DmaRange> {
  for (const range of ranges) {
    for (let at = 0; at < range.length; at += length) {
      yield { iova: range.iova + at, length: Math.min(length, range.length - at) };
    }
  }
}
