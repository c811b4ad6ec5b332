// SPDX-License-Identifier: Apache-2.0
/** Health counters and the error log in the image, and the log pages made of them (NVMe 1.4, section 5.14.1). */

import {
  COMPOSITE_TEMPERATURE,
  CRITICAL_WARNING_TEMPERATURE,
  changedNamespacesLog,
  commandsSupportedLog,
  Dword,
  type ErrorEntry,
  errorLog,
  firmwareLog,
  LogPage,
  nextErrorCount,
  smartLog,
} from '../spec/index.js';
import type { ControllerImage } from './controller-image.js';
import {
  ERROR_SIZE,
  ERROR_SLOTS,
  ERRORS_AT,
  ErrorSlot,
  HealthCounter,
  OVER_TEMPERATURE_AT,
  UNDER_TEMPERATURE_AT,
} from './layout.js';

const ERRORS_SIZE = ERROR_SLOTS * ERROR_SIZE;
/** Stands for no queue and no command. */
const NONE = 0xffff;

/** Logs the error of the command in a slot. `status` without phase. */
export function logCommandError(image: ControllerImage, slot: number, status: number): void {
  const lba = Math.min(image.qword(slot, Dword.CDW10), Number.MAX_SAFE_INTEGER);
  logError(image, image.sqid(slot), image.cid(slot), status, lba, image.dword(slot, Dword.NSID));
}

/** Logs an error that belongs to no command. */
export function logGeneralError(image: ControllerImage, status: number): void {
  logError(image, NONE, NONE, status, 0, 0);
}

function logError(
  image: ControllerImage,
  sqid: number,
  cid: number,
  status: number,
  lba: number,
  nsid: number,
): void {
  const count = nextErrorCount(image.u64(HealthCounter.ERRORS));
  image.setU64(HealthCounter.ERRORS, count);
  image.bytes.copyWithin(ERRORS_AT + ERROR_SIZE, ERRORS_AT, ERRORS_AT + ERRORS_SIZE - ERROR_SIZE);
  writeError(image, 0, { count, sqid, cid, status, lba, nsid });
}

/** Writes a slot of the error log. */
export function writeError(image: ControllerImage, index: number, entry: ErrorEntry): void {
  const at = ERRORS_AT + index * ERROR_SIZE;
  image.setU64(at + ErrorSlot.COUNT, entry.count);
  image.setU64(at + ErrorSlot.LBA, entry.lba);
  image.setU32(at + ErrorSlot.NSID, entry.nsid);
  image.setU16(at + ErrorSlot.SQID, entry.sqid);
  image.setU16(at + ErrorSlot.CID, entry.cid);
  image.setU16(at + ErrorSlot.STATUS, entry.status);
}

/** Newest first. */
export function readErrors(image: ControllerImage): ErrorEntry[] {
  const entries: ErrorEntry[] = [];
  for (let at = ERRORS_AT; at < ERRORS_AT + ERRORS_SIZE; at += ERROR_SIZE) {
    const count = image.u64(at + ErrorSlot.COUNT);
    if (count === 0) break;
    entries.push({
      count,
      sqid: image.u16(at + ErrorSlot.SQID),
      cid: image.u16(at + ErrorSlot.CID),
      status: image.u16(at + ErrorSlot.STATUS),
      lba: image.u64(at + ErrorSlot.LBA),
      nsid: image.u32(at + ErrorSlot.NSID),
    });
  }
  return entries;
}

/** Critical warnings (byte 0 of the SMART log). */
export function criticalWarning(image: ControllerImage): number {
  const over = COMPOSITE_TEMPERATURE >= image.u32(OVER_TEMPERATURE_AT);
  const under = COMPOSITE_TEMPERATURE <= image.u32(UNDER_TEMPERATURE_AT);
  return over || under ? CRITICAL_WARNING_TEMPERATURE : 0;
}

/** The bytes of a log page; undefined if there is none of this identifier. */
export function logPage(image: ControllerImage, id: number, firmware: string): Uint8Array | undefined {
  switch (id) {
    case LogPage.ERROR_INFORMATION:
      return errorLog(readErrors(image), ERROR_SLOTS);
    case LogPage.SMART:
      return smart(image);
    case LogPage.FIRMWARE_SLOT:
      return firmwareLog(firmware);
    case LogPage.CHANGED_NAMESPACES:
      return changedNamespacesLog();
    case LogPage.COMMANDS_SUPPORTED:
      return commandsSupportedLog();
    default:
      return undefined;
  }
}

function smart(image: ControllerImage): Uint8Array {
  const counters = {
    bytesRead: image.u64(HealthCounter.BYTES_READ),
    bytesWritten: image.u64(HealthCounter.BYTES_WRITTEN),
    readCommands: image.u64(HealthCounter.READ_COMMANDS),
    writeCommands: image.u64(HealthCounter.WRITE_COMMANDS),
    mediaErrors: image.u64(HealthCounter.MEDIA_ERRORS),
  };
  return smartLog(counters, {
    criticalWarning: criticalWarning(image),
    temperature: COMPOSITE_TEMPERATURE,
    errorEntries: image.u64(HealthCounter.ERRORS),
  });
}
