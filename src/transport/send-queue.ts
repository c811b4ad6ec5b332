// SPDX-License-Identifier: Apache-2.0
/** Bytes and fds that a socket could not take yet, in order. */

import { Errno, MAX_MESSAGE_FDS, native, type Parts } from '../native/index.js';
import { closeAll, type Fd } from './fd.js';

/** Most entries that one system call gathers. */
const GATHERED = 32;

const NO_FDS: readonly Fd[] = [];
const fdNumbers = new Int32Array(MAX_MESSAGE_FDS);

/** Bytes in all parts. */
export function lengthOf(parts: Parts): number {
  if (parts instanceof Uint8Array) return parts.length;
  let length = 0;
  for (const part of parts) length += part.length;
  return length;
}

/** Sends bytes [start, end) of `parts` with `fds` on the first; bytes sent, or the negative errno. Never blocks. */
export function sendNow(
  socket: number,
  parts: Parts,
  start: number,
  end: number,
  fds: readonly Fd[],
): number {
  if (fds.length > MAX_MESSAGE_FDS) return -Errno.EINVAL;
  for (let i = 0; i < fds.length; i++) fdNumbers[i] = fds[i]!.number;
  for (;;) {
    const sent = native.sendMessage(socket, parts, start, end, fds.length > 0 ? fdNumbers : null, fds.length);
    if (sent !== -Errno.EINTR) return sent;
  }
}

/** Bytes [start, end) of `parts` in one buffer that the queue may keep. */
function keep(parts: Parts, start: number, end: number, owned: boolean): Uint8Array[] {
  const list = parts instanceof Uint8Array ? [parts] : parts;
  const kept: Uint8Array[] = [];
  let at = 0;
  for (const part of list) {
    const from = Math.max(start - at, 0);
    const to = Math.min(end - at, part.length);
    if (from < to) kept.push(owned ? part.subarray(from, to) : part.slice(from, to));
    at += part.length;
  }
  return kept;
}

/** Second owners of all of them, or of none when one fails. */
function duplicateAll(fds: readonly Fd[]): Fd[] {
  const copies: Fd[] = [];
  try {
    for (const fd of fds) copies.push(fd.duplicate());
  } catch (error) {
    closeAll(copies);
    throw error;
  }
  return copies;
}

interface Entry {
  bytes: Uint8Array;
  /** Owned by the queue; they travel with the entry's first byte. */
  fds: readonly Fd[];
}

export class SendQueue {
  #entries: Entry[] = [];
  /** Bytes of the first entry that are sent. */
  #sent = 0;
  #bytes = 0;

  /** Bytes waiting. */
  get bytes(): number {
    return this.#bytes;
  }

  get isEmpty(): boolean {
    return this.#entries.length === 0;
  }

  /** Appends bytes [start, end) of `parts`: copied unless `owned`. The fds are duplicated, as their owner continues. */
  push(parts: Parts, start: number, end: number, fds: readonly Fd[], owned: boolean): void {
    const held = fds.length > 0 ? duplicateAll(fds) : NO_FDS;
    let first = true;
    for (const bytes of keep(parts, start, end, owned)) {
      this.#entries.push({ bytes, fds: first ? held : NO_FDS });
      this.#bytes += bytes.length;
      first = false;
    }
  }

  /** Sends as much as the socket takes: 0 when the queue is empty then, else the negative errno that stopped it. */
  flush(socket: number): number {
    while (this.#entries.length > 0) {
      const sent = this.#sendSome(socket);
      if (sent < 0) return sent;
      this.#advance(sent);
    }
    return 0;
  }

  /** One system call. Its fds belong to its first byte, so it ends before the next entry that has some. */
  #sendSome(socket: number): number {
    const parts: Uint8Array[] = [];
    let length = 0;
    for (const entry of this.#entries) {
      if (parts.length === GATHERED || (parts.length > 0 && entry.fds.length > 0)) break;
      parts.push(entry.bytes);
      length += entry.bytes.length;
    }
    return sendNow(socket, parts, this.#sent, length, this.#entries[0]!.fds);
  }

  #advance(sent: number): void {
    this.#bytes -= sent;
    let done = 0;
    let rest = this.#sent + sent;
    for (const entry of this.#entries) {
      if (rest > 0) {
        closeAll(entry.fds);
        entry.fds = NO_FDS;
      }
      if (rest < entry.bytes.length) break;
      rest -= entry.bytes.length;
      done++;
    }
    this.#entries.splice(0, done);
    this.#sent = rest;
  }

  /** Drops everything. */
  clear(): void {
    for (const entry of this.#entries) closeAll(entry.fds);
    this.#entries = [];
    this.#sent = 0;
    this.#bytes = 0;
  }
}
