// SPDX-License-Identifier: Apache-2.0
/** Log pages (NVMe 1.4, section 5.14.1): values to bytes. */

import { AdminOpcode, IoOpcode } from './commands.js';

/** What the SMART log counts. */
export interface SmartCounters {
  /** Bytes. */
  bytesRead: number;
  bytesWritten: number;
  readCommands: number;
  writeCommands: number;
  mediaErrors: number;
}

/** One entry of the Error Information log. */
export interface ErrorEntry {
  /** Counts from 1, over the controller's life. */
  readonly count: number;
  readonly sqid: number;
  readonly cid: number;
  /** Status field without phase. */
  readonly status: number;
  readonly lba: number;
  readonly nsid: number;
}

export const ERROR_ENTRY_SIZE = 64;
const SMART_SIZE = 512;
/** A data unit is a thousand times 512 bytes. */
const DATA_UNIT = 512_000;

/** Error Information (01h): newest first, unused entries zero. */
export function errorLog(entries: readonly ErrorEntry[], capacity: number): Uint8Array {
  const bytes = new Uint8Array(ERROR_ENTRY_SIZE * capacity);
  const view = new DataView(bytes.buffer);
  entries.slice(0, capacity).forEach((entry, index) => {
    const at = ERROR_ENTRY_SIZE * index;
    view.setBigUint64(at, BigInt(entry.count), true);
    view.setUint16(at + 8, entry.sqid, true);
    view.setUint16(at + 10, entry.cid, true);
    view.setUint16(at + 12, entry.status << 1, true);
    view.setUint16(at + 14, 0xffff, true); // parameter error location: not told
    view.setBigUint64(at + 16, BigInt(entry.lba), true);
    view.setUint32(at + 24, entry.nsid, true);
  });
  return bytes;
}

/** SMART / Health Information (02h). `temperature` in Kelvin. */
export function smartLog(
  counters: SmartCounters,
  state: { criticalWarning: number; temperature: number; errorEntries: number },
): Uint8Array {
  const bytes = new Uint8Array(SMART_SIZE);
  const view = new DataView(bytes.buffer);
  view.setUint8(0, state.criticalWarning);
  view.setUint16(1, state.temperature, true);
  view.setUint8(3, 100); // available spare, percent
  view.setUint8(4, 10); // its threshold
  const values = [
    [32, Math.ceil(counters.bytesRead / DATA_UNIT)],
    [48, Math.ceil(counters.bytesWritten / DATA_UNIT)],
    [64, counters.readCommands],
    [80, counters.writeCommands],
    [160, counters.mediaErrors],
    [176, state.errorEntries],
  ] as const;
  for (const [at, value] of values) view.setBigUint64(at, BigInt(value), true);
  return bytes;
}

/** Firmware Slot Information (03h): slot 1 is active. */
export function firmwareLog(firmware: string): Uint8Array {
  const bytes = new Uint8Array(512);
  bytes[0] = 1;
  bytes.set(Buffer.from(firmware.padEnd(8, ' '), 'latin1'), 8);
  return bytes;
}

/** Changed Namespace List (04h): the namespace never changes. */
export function changedNamespacesLog(): Uint8Array {
  return new Uint8Array(4096);
}

const SUPPORTED = 0x1;
const CONTENT_CHANGES = 0x2;

/** Commands Supported and Effects (05h). */
export function commandsSupportedLog(): Uint8Array {
  const bytes = new Uint8Array(4096);
  const view = new DataView(bytes.buffer);
  for (const opcode of Object.values(AdminOpcode)) view.setUint32(4 * opcode, SUPPORTED, true);
  const writes: readonly number[] = [IoOpcode.WRITE, IoOpcode.WRITE_ZEROES, IoOpcode.DATASET_MANAGEMENT];
  for (const opcode of Object.values(IoOpcode)) {
    view.setUint32(
      1024 + 4 * opcode,
      writes.includes(opcode) ? SUPPORTED | CONTENT_CHANGES : SUPPORTED,
      true,
    );
  }
  return bytes;
}
