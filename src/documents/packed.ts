// SPDX-License-Identifier: Apache-2.0
/**
 * Documents that processes of devstate exchange, as MessagePack: what JSON has, and bytes. msgpackr packs and unpacks them.
 * It makes whatever a peer claims, so that bytes are looked through before it has them: extension types, claims of more
 * than there is, and deep nesting go no further. What the values mean is for a schema to check.
 */

import { isUtf8 } from 'node:buffer';
import { Packr } from 'msgpackr/pack';
import { asDevstateError, DevstateError } from '../errors.js';
import * as z from '../zod.js';

/** Arrays and maps within each other, the outermost included. */
export const MAX_DOCUMENT_DEPTH = 64;
/** Values of one document, keys included: 65,535 DMA mappings of a `vfio` assignment are 900,000. */
export const MAX_DOCUMENT_VALUES = 1 << 21;
/** Values of a document that is read while a device is served: each takes 0.1 µs, and 10 µs the first time that the code runs. */
export const MAX_REQUEST_VALUES = 16_384;

/** Members that are undefined are left out, as JSON leaves them out. Integers from 2^32 on are floats, which have 2^53. */
const codec = new Packr({
  useRecords: false,
  int64AsType: 'number',
  copyBuffers: true,
  skipValues: [undefined],
} as ConstructorParameters<typeof Packr>[0]);

/**
 * @param value of null, booleans, numbers, text, bytes, arrays, and objects of those
 * @throws DEVSTATE_E_HANDOFF_BUNDLE when there is anything else in it, or too much
 */
export function packDocument(value: unknown): Uint8Array {
  let bytes: Uint8Array;
  try {
    bytes = codec.pack(value ?? null);
  } catch (cause) {
    throw malformed('a document cannot be packed', cause);
  }
  requireDocument(bytes, MAX_DOCUMENT_VALUES);
  return bytes;
}

/** @returns a value that shares no memory with `bytes` @throws DEVSTATE_E_HANDOFF_BUNDLE unless they are one document of at most `maxValues` */
export function unpackDocument(bytes: Uint8Array, maxValues = MAX_DOCUMENT_VALUES): unknown {
  requireDocument(bytes, maxValues);
  try {
    return codec.unpack(bytes);
  } catch (cause) {
    throw malformed('a message that should hold a document does not', cause);
  }
}

/** Bytes in a document's schema. @param most of them; default: as many as a message has */
export function documentBytes(most = Number.POSITIVE_INFINITY) {
  const what = most === Number.POSITIVE_INFINITY ? 'expected bytes' : `expected at most ${most} bytes`;
  return z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.length <= most, what);
}

/** What is wrong with what another process has sent. */
export function malformed(what: string, cause?: unknown): DevstateError {
  const message = `${what}; are both processes of versions that fit together?`;
  return new DevstateError(
    'DEVSTATE_E_HANDOFF_BUNDLE',
    message,
    cause === undefined ? {} : { cause: asDevstateError(cause) },
  );
}

function wrong(what: string): DevstateError {
  return malformed(`a message that should hold a document has ${what}`);
}

/** Bytes of the length that stands behind the first byte of a value, by that byte minus 0xc4; 0 for what has none. */
const LENGTHS = [1, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 2, 4, 2, 4];
/** Bytes of the numbers 0xca (float 32) to 0xd3 (int 64). */
const NUMBERS = [4, 8, 1, 2, 4, 8, 1, 2, 4, 8];
const PROTO = '__proto__';

/** @throws DEVSTATE_E_HANDOFF_BUNDLE unless `bytes` are exactly one value of those that a document may have */
function requireDocument(bytes: Uint8Array, maxValues: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  /** Values that are to come, in each map or array that is open; those of a map count twice, and keys have even places. */
  const rest = [1];
  const isMap = [false];
  let top = 0;
  let values = 0;
  let at = 0;
  while (top >= 0) {
    if (rest[top] === 0) {
      top--;
      continue;
    }
    if (at >= bytes.length) throw wrong('no end');
    if (++values > maxValues) throw wrong(`more than ${maxValues} values`);
    const isKey = isMap[top] === true && rest[top]! % 2 === 0;
    rest[top]!--;
    const type = bytes[at++]!;
    // Integers, nil and booleans.
    if (type < 0x80 || type >= 0xe0 || type === 0xc0 || type === 0xc2 || type === 0xc3) {
      if (isKey) throw wrong('a key that is no text');
      continue;
    }
    if (type >= 0xca && type <= 0xd3) {
      if (isKey) throw wrong('a key that is no text');
      at += NUMBERS[type - 0xca]!;
      continue;
    }
    let length: number;
    if (type < 0xa0) length = type & 0x0f;
    else if (type < 0xc0) length = type & 0x1f;
    else {
      const size = LENGTHS[type - 0xc4] ?? 0;
      if (size === 0) throw wrong(`a value of type 0x${type.toString(16)}`);
      if (at + size > bytes.length) throw wrong('no end');
      length = size === 1 ? bytes[at]! : size === 2 ? view.getUint16(at) : view.getUint32(at);
      at += size;
    }
    const isText = (type >= 0xa0 && type < 0xc0) || (type >= 0xd9 && type <= 0xdb);
    if (isText || (type >= 0xc4 && type <= 0xc6)) {
      if (isKey && !isText) throw wrong('a key that is no text');
      if (at + length > bytes.length) throw wrong('no end');
      if (isText) requireText(bytes, at, length, isKey);
      at += length;
      continue;
    }
    if (isKey) throw wrong('a key that is no text');
    const map = type < 0x90 || type >= 0xde;
    const count = map ? 2 * length : length;
    if (count > bytes.length - at) throw wrong('no end');
    if (top >= MAX_DOCUMENT_DEPTH) throw wrong(`more than ${MAX_DOCUMENT_DEPTH} levels`);
    rest[++top] = count;
    isMap[top] = map;
  }
  if (at > bytes.length) throw wrong('no end');
  if (at < bytes.length) throw wrong(`${bytes.length - at} bytes behind it`);
}

function requireText(bytes: Uint8Array, at: number, length: number, isKey: boolean): void {
  let ascii = true;
  for (let i = at; ascii && i < at + length; i++) ascii = bytes[i]! < 0x80;
  if (!ascii && !isUtf8(bytes.subarray(at, at + length))) throw wrong('text that is not UTF-8');
  // msgpackr would rename it.
  if (isKey && length === PROTO.length && Buffer.from(bytes.subarray(at, at + length)).toString() === PROTO)
    throw wrong(`the key ${PROTO}`);
}
