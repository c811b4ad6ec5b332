// SPDX-License-Identifier: Apache-2.0
/** How an expected pause is printed. */

import type { ExpectedPause } from '../operations/index.js';
import { formatMs } from './output.js';

/** @param tookMs how long copying the pages took, once it is known */
export function expectedText({ totalMs, fixedMs, pagesMs, qemuMs }: ExpectedPause, tookMs?: number): string {
  const took = tookMs === undefined ? '' : ` (took ${formatMs(tookMs)})`;
  return `${formatMs(totalMs)}: pages ${formatMs(pagesMs)}${took}, QEMU at most ${formatMs(qemuMs)}, rest ${formatMs(fixedMs)}`;
}
