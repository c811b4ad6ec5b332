// SPDX-License-Identifier: Apache-2.0
/**
 * The log of what a device writes to memory. Layouts of <linux/vfio.h>, data of DEVICE_FEATURE; what vfio-user has
 * behind the structure, the kernel has behind a pointer:
 *
 *     DMA_LOGGING_START    page_size u64, num_ranges u32, reserved u32, ranges → { iova u64, length u64 } each
 *     DMA_LOGGING_REPORT   iova u64, length u64, page_size u64, bitmap → u64 each
 */

import {
  type DmaLoggingReport,
  type DmaLoggingStart,
  dirtyBitmapLength,
  Feature,
  FeatureFlag,
  readU64,
  writeU64,
} from '../../wire/index.js';
import type { VfioDevice } from '../device.js';
import { viewOf } from '../uapi/index.js';

const START_LENGTH = 24;
const START_RANGES = 16;
const RANGE_LENGTH = 16;
const REPORT_LENGTH = 32;
const REPORT_BITMAP = 24;

/** @returns the page size in force @throws DEVSTATE_E_VFIO, errno ENOTTY when the driver keeps no log */
export function startDmaLog(device: VfioDevice, { pageSize, ranges }: DmaLoggingStart): number {
  const memory = new Uint8Array(RANGE_LENGTH * ranges.length);
  ranges.forEach(({ iova, length }, i) => {
    writeU64(viewOf(memory), RANGE_LENGTH * i, iova);
    writeU64(viewOf(memory), RANGE_LENGTH * i + 8, length);
  });
  const data = new Uint8Array(START_LENGTH);
  writeU64(viewOf(data), 0, pageSize);
  viewOf(data).setUint32(8, ranges.length, true);
  const part = { memory, offset: 0, length: memory.length };
  const answer = device.featureWithMemory(
    Feature.DMA_LOGGING_START,
    FeatureFlag.SET,
    data,
    START_RANGES,
    part,
  );
  return readU64(viewOf(answer), 0);
}

export function stopDmaLog(device: VfioDevice): void {
  device.feature(Feature.DMA_LOGGING_STOP, FeatureFlag.SET);
}

/** The dirty bitmap of a range, bit i for the page i, which the driver forgets with this. */
export function reportDmaLog(device: VfioDevice, { iova, length, pageSize }: DmaLoggingReport): Uint8Array {
  const memory = new Uint8Array(dirtyBitmapLength(length, pageSize));
  const data = new Uint8Array(REPORT_LENGTH);
  writeU64(viewOf(data), 0, iova);
  writeU64(viewOf(data), 8, length);
  writeU64(viewOf(data), 16, pageSize);
  const part = { memory, offset: 0, length: memory.length };
  device.featureWithMemory(Feature.DMA_LOGGING_REPORT, FeatureFlag.GET, data, REPORT_BITMAP, part);
  return memory;
}
