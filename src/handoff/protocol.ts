// SPDX-License-Identifier: Apache-2.0
/**
 * The messages of a handoff (docs/handoff.md). Little endian; the header is the same in every version:
 *
 *     ┌─────────┬──────────┬───────────┬────────┬───────┬────────────┬─────────┐
 *     │ magic 4 │ length 4 │ version 2 │ type 2 │ fds 2 │ reserved 2 │ payload │
 *     └─────────┴──────────┴───────────┴────────┴───────┴────────────┴─────────┘
 *
 *     giver                receiver
 *       PREPARE  ────────────▶        JSON: what is to be handed over
 *                ◀──────────── READY  JSON: the receiver's answer
 *       FDS…     ────────────▶        kinds and names, at most 253 fds each
 *       TRANSFERRED ─────────▶        number of fds u32, number of the offer u32, JSON document
 *                ◀──────────── ADOPTED
 *                ◀──────────── RUNNING    the lease is the receiver's
 *       ROLLBACK ────────────▶        JSON: why; instead of what would come next
 *                ◀──────────── REFUSED    JSON: why; likewise
 *
 *     REQUEST and RESPONSE are no part of it: JSON of the application, on a connection without a handoff.
 */

import { DevstateError } from '../errors.js';
import type { Framing } from '../transport/index.js';

export const HANDOFF_MAGIC = 0x4f485644; // "DVHO"
export const HANDOFF_VERSION = 1;
export const HANDOFF_HEADER_LENGTH = 16;

export const HandoffMessage = {
  PREPARE: 1,
  READY: 2,
  FDS: 3,
  TRANSFERRED: 4,
  ADOPTED: 5,
  RUNNING: 6,
  ROLLBACK: 7,
  REFUSED: 8,
  /** Something else than a handoff, on a connection of its own: what an application is asked, and says. */
  REQUEST: 32,
  RESPONSE: 33,
} as const;
export type HandoffMessage = (typeof HandoffMessage)[keyof typeof HandoffMessage];

const messageNames = Object.keys(HandoffMessage) as (keyof typeof HandoffMessage)[];

export function handoffMessageName(type: number): string {
  return messageNames.find((name) => HandoffMessage[name] === type) ?? `message ${type}`;
}

/** Longest message: a document that describes as many DMA ranges as a client may map. */
export const MAX_HANDOFF_MESSAGE = 16 * 1024 * 1024;
/** Most fds of one bundle. */
export const MAX_BUNDLE_FDS = 65536;
/** Longest name of an fd, bytes. */
export const MAX_FD_NAME_LENGTH = 255;
/** Before the document in TRANSFERRED: number of fds u32, number of the lease's offer u32. */
const TRANSFERRED_LENGTH = 8;
/** Before each name in FDS: kind u16, length u16. */
const ENTRY_LENGTH = 4;

export const handoffFraming: Framing = {
  headerLength: HANDOFF_HEADER_LENGTH,
  // A stranger's first bytes are no length to wait for.
  messageLength: (view, offset) =>
    view.getUint32(offset, true) === HANDOFF_MAGIC ? view.getUint32(offset + 4, true) : 0,
};

export interface HandoffHeader {
  readonly version: number;
  readonly type: number;
  readonly fds: number;
}

/** An fd of a bundle, by kind (`FdKind`) and name. */
export interface EntryLabel {
  readonly kind: number;
  readonly name: string;
}

export function encodeMessage(type: HandoffMessage, payload: Uint8Array, fds = 0): Uint8Array {
  const bytes = new Uint8Array(HANDOFF_HEADER_LENGTH + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, HANDOFF_MAGIC, true);
  view.setUint32(4, bytes.length, true);
  view.setUint16(8, HANDOFF_VERSION, true);
  view.setUint16(10, type, true);
  view.setUint16(12, fds, true);
  bytes.set(payload, HANDOFF_HEADER_LENGTH);
  return bytes;
}

export function decodeHeader(view: DataView): HandoffHeader {
  return {
    version: view.getUint16(8, true),
    type: view.getUint16(10, true),
    fds: view.getUint16(12, true),
  };
}

export function encodeJson(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value ?? null));
}

/** @throws DEVSTATE_E_HANDOFF_BUNDLE */
export function decodeJson(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw malformed('a message that should hold JSON does not', cause);
  }
}

/** Each entry is padded to a multiple of 4. */
export function encodeEntries(entries: readonly EntryLabel[]): Uint8Array {
  const names = entries.map(({ name }) => new TextEncoder().encode(name));
  const length = names.reduce((sum, name) => sum + ENTRY_LENGTH + padded(name.length), 0);
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  let at = 0;
  entries.forEach(({ kind }, index) => {
    const name = names[index]!;
    if (name.length === 0 || name.length > MAX_FD_NAME_LENGTH)
      throw malformed(`an fd's name is ${name.length} bytes long; 1 to ${MAX_FD_NAME_LENGTH} are possible`);
    view.setUint16(at, kind, true);
    view.setUint16(at + 2, name.length, true);
    bytes.set(name, at + ENTRY_LENGTH);
    at += ENTRY_LENGTH + padded(name.length);
  });
  return bytes;
}

/** @throws DEVSTATE_E_HANDOFF_BUNDLE unless `bytes` are exactly `count` entries */
export function decodeEntries(bytes: Uint8Array, count: number): EntryLabel[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const decoder = new TextDecoder('utf-8', { fatal: true });
  const entries: EntryLabel[] = [];
  let at = 0;
  try {
    for (let i = 0; i < count; i++) {
      const length = view.getUint16(at + 2, true);
      if (length === 0 || length > MAX_FD_NAME_LENGTH || at + ENTRY_LENGTH + length > bytes.length)
        throw malformed(`the name of an fd is ${length} bytes long`);
      const start = at + ENTRY_LENGTH;
      entries.push({
        kind: view.getUint16(at, true),
        name: decoder.decode(bytes.subarray(start, start + length)),
      });
      at = start + padded(length);
    }
  } catch (cause) {
    throw cause instanceof DevstateError ? cause : malformed('the list of fds is cut or damaged', cause);
  }
  if (at !== bytes.length) throw malformed(`${bytes.length - at} bytes follow the list of ${count} fds`);
  return entries;
}

export function encodeTransferred(fds: number, document: unknown, offer = 0): Uint8Array {
  const json = encodeJson(document);
  const bytes = new Uint8Array(TRANSFERRED_LENGTH + json.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, fds, true);
  view.setUint32(4, offer, true);
  bytes.set(json, TRANSFERRED_LENGTH);
  return bytes;
}

/** @throws DEVSTATE_E_HANDOFF_BUNDLE */
export function decodeTransferred(bytes: Uint8Array): { fds: number; offer: number; document: unknown } {
  if (bytes.length < TRANSFERRED_LENGTH) throw malformed('TRANSFERRED is too short');
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return {
    fds: view.getUint32(0, true),
    offer: view.getUint32(4, true),
    document: decodeJson(bytes.subarray(TRANSFERRED_LENGTH)),
  };
}

function padded(length: number): number {
  return (length + 3) & ~3;
}

export function malformed(what: string, cause?: unknown): DevstateError {
  const message = `${what}; are both processes of versions that fit together?`;
  return new DevstateError('DEVSTATE_E_HANDOFF_BUNDLE', message, { cause });
}
