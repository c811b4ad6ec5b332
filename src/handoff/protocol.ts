// SPDX-License-Identifier: Apache-2.0
/**
 * What the messages of a handoff hold (docs/handoff.md; their header: src/documents/messages.ts).
 *
 *     giver                receiver
 *       PREPARE  ────────────▶        JSON: what is to be handed over
 *                ◀──────────── READY  document: the receiver's answer
 *       FDS…     ────────────▶        kinds and names, at most 253 fds each
 *       TRANSFERRED ─────────▶        number of fds u32, number of the offer u32, document
 *                ◀──────────── ADOPTED
 *                ◀──────────── RUNNING    the lease is the receiver's
 *       ROLLBACK ────────────▶        document: why; instead of what would come next
 *                ◀──────────── REFUSED    document: why; likewise
 */

import { malformed, packDocument, unpackDocument } from '../documents/index.js';
import { DevstateError } from '../errors.js';

/** Most fds of one bundle. */
export const MAX_BUNDLE_FDS = 65536;
/** Longest name of an fd, bytes. */
export const MAX_FD_NAME_LENGTH = 255;
/** Before the document in TRANSFERRED: number of fds u32, number of the lease's offer u32. */
const TRANSFERRED_LENGTH = 8;
/** Before each name in FDS: kind u16, length u16. */
const ENTRY_LENGTH = 4;

/** An fd of a bundle, by kind (`FdKind`) and name. */
export interface EntryLabel {
  readonly kind: number;
  readonly name: string;
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
  const packed = packDocument(document);
  const bytes = new Uint8Array(TRANSFERRED_LENGTH + packed.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, fds, true);
  view.setUint32(4, offer, true);
  bytes.set(packed, TRANSFERRED_LENGTH);
  return bytes;
}

/** @throws DEVSTATE_E_HANDOFF_BUNDLE */
export function decodeTransferred(bytes: Uint8Array): { fds: number; offer: number; document: unknown } {
  if (bytes.length < TRANSFERRED_LENGTH) throw malformed('TRANSFERRED is too short');
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return {
    fds: view.getUint32(0, true),
    offer: view.getUint32(4, true),
    document: unpackDocument(bytes.subarray(TRANSFERRED_LENGTH)),
  };
}

function padded(length: number): number {
  return (length + 3) & ~3;
}
