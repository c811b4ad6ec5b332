// SPDX-License-Identifier: Apache-2.0
/** Hand-written bytes in tests: hexadecimal digits with spaces, and whether a call throws what a peer may be told. */

import { RequestError } from '../../src/wire/index.js';

/** Bytes of `text`, whose blanks only group. */
export function hex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text.replaceAll(/\s+/g, ''), 'hex'));
}

export function toHex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** errno of the RequestError that `work` throws, 0 when it throws nothing; any other error continues. */
export function refusal(work: () => unknown): number {
  try {
    work();
    return 0;
  } catch (error) {
    if (error instanceof RequestError) return error.errno;
    throw error;
  }
}

/** Whether two arrays hold the same bytes; quicker than a deep comparison of long ones. */
export function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}
