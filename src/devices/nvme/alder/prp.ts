// SPDX-License-Identifier: Apache-2.0
/**
 * Physical Region Pages (NVMe 1.4, section 4.3): where in guest memory a command's data are.
 *
 * ```
 * PRP1 ──► data, from any dword of its page to the page's end
 * PRP2 ──► the second page, if the data end there; else
 *          a list: page, page, …, page                 the last entry that fits a page, if more
 *                                   └──► page, page, … pages follow, points to the next list
 * ```
 */

import type { GuestMemory, MemoryRange } from '../../../device/index.js';
import { Dword, Status } from '../spec/index.js';
import { type Command, CommandError } from './command.js';

const ENTRY_SIZE = 8;

export type Ranges = MemoryRange[] | Promise<MemoryRange[]>;

/**
 * Appends the ranges that hold `length` bytes of a command's data to `ranges`, adjacent pages as one.
 * @returns `ranges`; or, when a list is in memory that is not mapped, a promise of an array of its own, and `ranges`
 * is not used after the call
 * @throws CommandError, DmaFault
 */
export function collectPrps(
  memory: GuestMemory,
  command: Command,
  length: number,
  pageSize: number,
  ranges: MemoryRange[],
): Ranges {
  const prp1 = command.qword(Dword.PRP1);
  const offset = prp1 % pageSize;
  if (offset % 4 !== 0) throw new CommandError(Status.PRP_OFFSET_INVALID);
  const first = Math.min(length, pageSize - offset);
  append(ranges, prp1, first);
  const rest = length - first;
  if (rest === 0) return ranges;
  const prp2 = command.qword(Dword.PRP2);
  if (rest <= pageSize) {
    if (prp2 % pageSize !== 0) throw new CommandError(Status.PRP_OFFSET_INVALID);
    append(ranges, prp2, rest);
    return ranges;
  }
  if (prp2 % ENTRY_SIZE !== 0) throw new CommandError(Status.PRP_OFFSET_INVALID);
  return collectList(memory, prp2, rest, pageSize, ranges);
}

/** Walks lists from `list` on. Each pass needs as many entries as remain, so chains end however they are linked. */
function collectList(
  memory: GuestMemory,
  list: number,
  rest: number,
  pageSize: number,
  ranges: MemoryRange[],
): Ranges {
  for (;;) {
    const room = (pageSize - (list % pageSize)) / ENTRY_SIZE;
    const needed = Math.ceil(rest / pageSize);
    const entries = Math.min(room, needed);
    requireAddress(list);
    const bytes = memory.view(list, entries * ENTRY_SIZE, 'read');
    if (bytes === undefined) return collectRemoteList(memory, list, entries, rest, pageSize, ranges.slice());
    const next = takeEntries(bytes, needed, rest, pageSize, ranges);
    if (next === undefined) return ranges;
    rest = next.rest;
    list = next.list;
  }
}

async function collectRemoteList(
  memory: GuestMemory,
  list: number,
  entries: number,
  rest: number,
  pageSize: number,
  ranges: MemoryRange[],
): Promise<MemoryRange[]> {
  const bytes = new Uint8Array(entries * ENTRY_SIZE);
  await memory.read(list, bytes);
  const next = takeEntries(bytes, Math.ceil(rest / pageSize), rest, pageSize, ranges);
  return next === undefined ? ranges : collectList(memory, next.list, next.rest, pageSize, ranges);
}

/** Appends the pages of one list. @returns where the list continues, if it does */
function takeEntries(
  bytes: Uint8Array,
  needed: number,
  rest: number,
  pageSize: number,
  ranges: MemoryRange[],
): { list: number; rest: number } | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const entries = bytes.length / ENTRY_SIZE;
  const chained = entries < needed;
  const pages = chained ? entries - 1 : entries;
  for (let index = 0; index < pages; index++) {
    const page = entryAt(view, index);
    if (page % pageSize !== 0) throw new CommandError(Status.PRP_OFFSET_INVALID);
    const length = Math.min(rest, pageSize);
    append(ranges, page, length);
    rest -= length;
  }
  if (!chained) return undefined;
  const list = entryAt(view, pages);
  if (list % pageSize !== 0) throw new CommandError(Status.PRP_OFFSET_INVALID);
  return { list, rest };
}

function entryAt(view: DataView, index: number): number {
  return view.getUint32(index * ENTRY_SIZE, true) + view.getUint32(index * ENTRY_SIZE + 4, true) * 2 ** 32;
}

function append(ranges: MemoryRange[], address: number, length: number): void {
  requireAddress(address + length);
  const last = ranges.at(-1);
  if (last !== undefined && last.address + last.length === address) {
    ranges[ranges.length - 1] = { address: last.address, length: last.length + length };
  } else ranges.push({ address, length });
}

function requireAddress(address: number): void {
  if (!Number.isSafeInteger(address)) throw new CommandError(Status.DATA_TRANSFER_ERROR);
}

/** Copies `data` to a command's data pointer. */
export async function writeToPrps(
  memory: GuestMemory,
  command: Command,
  data: Uint8Array,
  pageSize: number,
): Promise<void> {
  const ranges = await collectPrps(memory, command, data.length, pageSize, []);
  let done = 0;
  for (const { address, length } of ranges) {
    await memory.write(address, data.subarray(done, done + length));
    done += length;
  }
}

/** Copies `length` bytes from a command's data pointer. */
export async function readFromPrps(
  memory: GuestMemory,
  command: Command,
  length: number,
  pageSize: number,
): Promise<Uint8Array> {
  const data = new Uint8Array(length);
  const ranges = await collectPrps(memory, command, length, pageSize, []);
  let done = 0;
  for (const range of ranges) {
    await memory.read(range.address, data.subarray(done, done + range.length));
    done += range.length;
  }
  return data;
}
