// SPDX-License-Identifier: Apache-2.0
/** What a driver takes from the data of Identify (NVMe 1.4, section 5.15). */

import { readU64 } from '../wire/index.js';

export interface ControllerInfo {
  readonly serial: string;
  readonly modelNumber: string;
  readonly firmware: string;
  /** Most bytes of one command. */
  readonly maxTransfer: number;
  readonly volatileWriteCache: boolean;
}

export interface NamespaceInfo {
  /** Size in logical blocks. */
  readonly blocks: number;
  /** Bytes of a logical block. */
  readonly blockSize: number;
}

/** MDTS 0 means no limit; then this many bytes a command are enough for anybody. */
const UNLIMITED_TRANSFER = 1024 * 1024;

/** @param minPageSize CAP.MPSMIN, bytes */
export function decodeController(bytes: Uint8Array, minPageSize: number): ControllerInfo {
  const text = (from: number, to: number) => Buffer.from(bytes.subarray(from, to)).toString('latin1').trim();
  const mdts = bytes[77]!;
  return {
    serial: text(4, 24),
    modelNumber: text(24, 64),
    firmware: text(64, 72),
    maxTransfer: mdts === 0 ? UNLIMITED_TRANSFER : minPageSize * 2 ** mdts,
    volatileWriteCache: (bytes[525]! & 1) !== 0,
  };
}

export function decodeNamespace(bytes: Uint8Array): NamespaceInfo {
  const format = bytes[26]! & 0xf;
  return {
    blocks: readU64(new DataView(bytes.buffer, bytes.byteOffset, bytes.length), 0),
    blockSize: 2 ** bytes[128 + 4 * format + 2]!,
  };
}
