// SPDX-License-Identifier: Apache-2.0
/**
 * DEVSTATE_CONFIG_READS: the reads of configuration space that a VMM has sent. Layouts, offsets after the feature header:
 *
 *     request   since u64, vmm u32, reserved u32                                      (16)
 *     reply     next u64, count u32, reserved u32, count × { offset u16, length u16 }
 *
 * Reads are numbered from 0 in the order in which they arrived, for each VMM connection by itself. `next` is the number
 * of the read to come; the reply has the last `count` reads before it, none of them older than `since`.
 */

import { Errno, RequestError } from './errno.js';
import { readU64, requireBytes, writeU64 } from './reader.js';

export const CONFIG_READS_REQUEST_LENGTH = 16;
const HEAD_LENGTH = 16;
const ENTRY_LENGTH = 4;

/** Reads that a server remembers of each VMM. */
export const CONFIG_READS_KEPT = 4096;
/** Room for every reply. */
export const MAX_CONFIG_READS_LENGTH = HEAD_LENGTH + ENTRY_LENGTH * CONFIG_READS_KEPT;

/** Which VMM reads: the one that has the device, or the other one while one follows another (DEVSTATE_NEXT_VMM). */
export const WitnessedVmm = { PRESENT: 0, OTHER: 1 } as const;
export type WitnessedVmm = (typeof WitnessedVmm)[keyof typeof WitnessedVmm];

export interface ConfigReadsRequest {
  /** Number of the first read that is of interest. */
  readonly since: number;
  readonly vmm: WitnessedVmm;
}

/** One read of configuration space, bytes. */
export interface ConfigRead {
  readonly offset: number;
  readonly length: number;
}

export interface ConfigReads {
  /** Number of the read to come. */
  readonly next: number;
  /** The last reads before it, oldest first. */
  readonly reads: readonly ConfigRead[];
}

export function encodeConfigReadsRequest({ since, vmm }: ConfigReadsRequest): Uint8Array {
  const bytes = new Uint8Array(CONFIG_READS_REQUEST_LENGTH);
  const view = new DataView(bytes.buffer);
  writeU64(view, 0, since);
  view.setUint32(8, vmm, true);
  return bytes;
}

/** @throws RequestError EINVAL */
export function decodeConfigReadsRequest(view: DataView, at: number, end: number): ConfigReadsRequest {
  requireBytes(view, at, end, CONFIG_READS_REQUEST_LENGTH, 'DEVSTATE_CONFIG_READS');
  const vmm = view.getUint32(at + 8, true);
  if (vmm !== WitnessedVmm.PRESENT && vmm !== WitnessedVmm.OTHER)
    throw new RequestError(Errno.EINVAL, `DEVSTATE_CONFIG_READS of VMM ${vmm}`);
  return { since: readU64(view, at), vmm };
}

export function encodeConfigReads({ next, reads }: ConfigReads): Uint8Array {
  const bytes = new Uint8Array(HEAD_LENGTH + ENTRY_LENGTH * reads.length);
  const view = new DataView(bytes.buffer);
  writeU64(view, 0, next);
  view.setUint32(8, reads.length, true);
  for (const [index, { offset, length }] of reads.entries()) {
    const at = HEAD_LENGTH + ENTRY_LENGTH * index;
    view.setUint16(at, offset, true);
    view.setUint16(at + 2, length, true);
  }
  return bytes;
}

/** @throws RequestError EINVAL when the bytes are no such reply */
export function decodeConfigReads(view: DataView, at: number, end: number): ConfigReads {
  requireBytes(view, at, end, HEAD_LENGTH, 'DEVSTATE_CONFIG_READS reply');
  const count = view.getUint32(at + 8, true);
  if (count > CONFIG_READS_KEPT) throw new RequestError(Errno.EINVAL, `${count} reads in one reply`);
  const first = at + HEAD_LENGTH;
  requireBytes(view, first, end, ENTRY_LENGTH * count, 'DEVSTATE_CONFIG_READS reply');
  const reads = Array.from({ length: count }, (_, index) => {
    const entry = first + ENTRY_LENGTH * index;
    return { offset: view.getUint16(entry, true), length: view.getUint16(entry + 2, true) };
  });
  return { next: readU64(view, at), reads };
}
