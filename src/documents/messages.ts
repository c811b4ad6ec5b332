// SPDX-License-Identifier: Apache-2.0
/**
 * The messages that processes of devstate send each other (docs/handoff.md). Little endian; the header is the same in every
 * version:
 *
 *     ┌─────────┬──────────┬───────────┬────────┬───────┬────────────┬─────────┐
 *     │ magic 4 │ length 4 │ version 2 │ type 2 │ fds 2 │ reserved 2 │ payload │
 *     └─────────┴──────────┴───────────┴────────┴───────┴────────────┴─────────┘
 *
 * Version 2 has packed documents. PREPARE, which begins a handoff, is of version 1 for ever, with JSON: a peer of any version
 * can read it, and refuse. It says what version the others are of.
 */

import { DevstateError } from '../errors.js';
import type { Framing } from '../transport/index.js';
import { MAX_REQUEST_VALUES, malformed, packDocument, unpackDocument } from './packed.js';

export const HANDOFF_MAGIC = 0x4f485644; // "DVHO"
export const HANDOFF_VERSION = 2;
/** The version whose documents are JSON. */
export const FIRST_VERSION = 1;
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
  /** No part of a handoff: see ask.ts. It is a line feed, at which a relay of the first version, which read lines, answers. */
  REQUEST: 10,
  RESPONSE: 11,
} as const;
export type HandoffMessage = (typeof HandoffMessage)[keyof typeof HandoffMessage];

const messageNames = Object.keys(HandoffMessage) as (keyof typeof HandoffMessage)[];

export function handoffMessageName(type: number): string {
  return messageNames.find((name) => HandoffMessage[name] === type) ?? `message ${type}`;
}

/** Longest message: a document that describes as many DMA ranges as a client may map. */
export const MAX_HANDOFF_MESSAGE = 16 * 1024 * 1024;
/** Longest request or answer: what comes before anything is handed over. */
export const MAX_REQUEST_MESSAGE = 64 * 1024;

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

/** @param type of `HandoffMessage`, or of another version */
export function encodeMessage(
  type: number,
  payload: Uint8Array,
  fds = 0,
  version = type === HandoffMessage.PREPARE ? FIRST_VERSION : HANDOFF_VERSION,
): Uint8Array {
  const bytes = new Uint8Array(HANDOFF_HEADER_LENGTH + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, HANDOFF_MAGIC, true);
  view.setUint32(4, bytes.length, true);
  view.setUint16(8, version, true);
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

/** As messages of a version have it. */
export function encodeDocument(value: unknown, version: number): Uint8Array {
  if (version !== FIRST_VERSION) return packDocument(value);
  return new TextEncoder().encode(JSON.stringify(value ?? null));
}

/** A short one. @throws DEVSTATE_E_HANDOFF_BUNDLE */
export function decodeDocument(bytes: Uint8Array, version: number): unknown {
  if (version !== FIRST_VERSION) return unpackDocument(bytes, MAX_REQUEST_VALUES);
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw malformed('a message that should hold JSON does not', cause);
  }
}

export function otherVersion(theirs: unknown): DevstateError {
  const message = `the other process speaks version ${theirs} of the handoff, this one ${HANDOFF_VERSION}: both have to be of releases of devstate that speak the same`;
  return new DevstateError('DEVSTATE_E_HANDOFF_BUNDLE', message);
}
