// SPDX-License-Identifier: Apache-2.0
/**
 * What a process says on stderr, without ever waiting for the reader: a log reader that stands still, a terminal that
 * is paused (Ctrl-S) or a disk that is full costs lines, not the device or the migration. Lines wait in a bounded queue;
 * those that do not fit are dropped, and their number is written when the reader reads again.
 */

import { writeSync } from 'node:fs';
import { loadPackageAddon } from '../native/loader.js';

type Addon = ReturnType<typeof loadPackageAddon>;

/** Most bytes that wait. */
const MAX_QUEUED = 1024 * 1024;
/** How often to see whether dropped lines can be reported, ms. */
const REPORT_MS = 250;
/** The process ends although lines wait once nothing was written for so long, ms. */
const END_MS = 500;
/** Output on stdout waits for so long for the lines before it, ms. */
const ORDER_MS = 100;

let writer: { readonly addon: Addon; readonly id: number } | undefined;
/** Without the addon, only its absence is to be said. */
let opened = false;
const state = new Float64Array(2);
/** Lines that were dropped, and no line says so yet. */
let unreported = 0;
/** The process ends: nothing is written later. */
let ending = false;
let reporting: NodeJS.Timeout | undefined;
let notice = (dropped: number): string => `${droppedText(dropped)}\n`;

export function droppedText(lines: number): string {
  return `${lines} line${lines === 1 ? '' : 's'} dropped: stderr was not read, or could not be written`;
}

/** Writes `text`, whole lines, some time soon. */
export function writeStderr(text: string): void {
  open();
  if (writer === undefined) writeNow(text);
  else if (ending) writeAtEnd(text);
  else if (writer.addon.outputWrite(writer.id, Buffer.from(text), 1) > 0) reportLater();
}

/** @param format the line that says how many lines were dropped, with its end of line */
export function setDroppedNotice(format: (dropped: number) => string): void {
  notice = format;
}

/** Waits a short time for what was written so far: before output on stdout, which may be the same terminal. */
export function settleStderr(): void {
  writer?.addon.outputFlush(writer.id, ORDER_MS);
}

function writeNow(text: string): void {
  try {
    writeSync(2, text);
  } catch {
    // There is no other place to say it.
  }
}

function writeAtEnd(text: string): void {
  if (writer === undefined) return;
  const { addon, id } = writer;
  addon.outputWrite(id, Buffer.from(text), 1);
  addon.outputFlush(id, END_MS);
}

function open(): void {
  if (opened) return;
  opened = true;
  try {
    const addon = loadPackageAddon();
    const id = addon.outputOpen(2, MAX_QUEUED);
    if (id < 0) return;
    writer = { addon, id };
  } catch {
    return;
  }
  process.on('exit', end);
}

function reportLater(): void {
  if (reporting !== undefined) return;
  reporting = setInterval(report, REPORT_MS);
  reporting.unref();
}

/** Says how many lines were dropped, once there is room. */
function report(): void {
  if (writer === undefined) return;
  const { addon, id } = writer;
  addon.outputState(id, state);
  const [queued = 0, dropped = 0] = state;
  unreported += dropped;
  if (unreported > 0 && queued > MAX_QUEUED / 2) return;
  if (unreported > 0) {
    // If it is lost in its turn, the lines count as dropped again.
    addon.outputWrite(id, Buffer.from(notice(unreported)), unreported);
    unreported = 0;
  } else if (queued === 0) {
    clearInterval(reporting);
    reporting = undefined;
  }
}

function end(): void {
  ending = true;
  if (writer === undefined) return;
  const { addon, id } = writer;
  if (addon.outputFlush(id, END_MS) === 0) return;
  report();
  addon.outputFlush(id, END_MS);
}
