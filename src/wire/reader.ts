// SPDX-License-Identifier: Apache-2.0
/** Bounded little readers and writers shared by the message layouts. All vfio-user integers are host endian; we run on little endian hosts. */

import { Errno, RequestError } from './errno.js';

const TWO_32 = 0x1_0000_0000;

/** Refuses a payload shorter than `needed` bytes from `offset`. @throws RequestError EINVAL */
export function requireBytes(
  view: DataView,
  offset: number,
  end: number,
  needed: number,
  what: string,
): void {
  if (end - offset < needed || end > view.byteLength) {
    throw new RequestError(Errno.EINVAL, `${what} needs ${needed} bytes of payload, got ${end - offset}`);
  }
}

/** Reads a u64 as a number. Values of 2^53 and above cannot be an address or length that we serve. @throws RequestError EINVAL */
export function readU64(view: DataView, offset: number): number {
  const high = view.getUint32(offset + 4, true);
  if (high >= 0x20_0000) throw new RequestError(Errno.EINVAL, '64-bit value of 2^53 or more');
  return high * TWO_32 + view.getUint32(offset, true);
}

/** Writes a safe integer as a u64. */
export function writeU64(view: DataView, offset: number, value: number): void {
  view.setUint32(offset, value % TWO_32, true);
  view.setUint32(offset + 4, Math.floor(value / TWO_32), true);
}
