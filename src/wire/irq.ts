// SPDX-License-Identifier: Apache-2.0
/**
 * DEVICE_SET_IRQS, 20 bytes and then, with DATA_BOOL, one byte per vector; eventfds ride as ancillary data:
 *
 *     argsz u32, flags u32, index u32, start u32, count u32, data
 */

import { requireBytes } from './reader.js';

export const SET_IRQS_LENGTH = 20;

export interface SetIrqs {
  flags: number;
  index: number;
  start: number;
  count: number;
}

/** Reads the fixed part; `data` begins at `at + SET_IRQS_LENGTH`. */
export function decodeSetIrqs(view: DataView, at: number, end: number): SetIrqs {
  requireBytes(view, at, end, SET_IRQS_LENGTH, 'DEVICE_SET_IRQS');
  return {
    flags: view.getUint32(at + 4, true),
    index: view.getUint32(at + 8, true),
    start: view.getUint32(at + 12, true),
    count: view.getUint32(at + 16, true),
  };
}

export function encodeSetIrqs(view: DataView, at: number, request: SetIrqs, dataLength = 0): void {
  view.setUint32(at, SET_IRQS_LENGTH + dataLength, true);
  view.setUint32(at + 4, request.flags, true);
  view.setUint32(at + 8, request.index, true);
  view.setUint32(at + 12, request.start, true);
  view.setUint32(at + 16, request.count, true);
}
