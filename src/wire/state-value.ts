// SPDX-License-Identifier: Apache-2.0
/**
 * DEVSTATE_VALUES, a DEVICE_FEATURE of our own: the state value by value, of a device that has no stream of it.
 * `formats/README.md`, "Values one by one", is the norm. Names are UTF-8, values a kind and up to 64 KiB:
 *
 *     GET, no data                 uuid[16] of the format whose schema names the values, major u16, minor u16, count u32,
 *                                  then { length u16, name } each; none unless the device is in STOP_COPY
 *     GET, name                    value
 *     SET                          name length u16, name, value
 *     value                        kind u8 (1 unsigned, 2 boolean, 3 text, 4 bytes), then u64, u8, or the bytes
 */

import { Errno, RequestError } from './errno.js';
import { readU64, requireBytes, writeU64 } from './reader.js';

export type StateValue = number | boolean | string | Uint8Array;

export interface ValueNames {
  /** UUID of the format, 16 bytes. */
  readonly uuid: Uint8Array;
  readonly major: number;
  readonly minor: number;
  readonly names: readonly string[];
}

const Kind = { UNSIGNED: 1, BOOLEAN: 2, TEXT: 3, BYTES: 4 } as const;
const NAMES_HEAD_LENGTH = 24;
const UUID_LENGTH = 16;
/** Values one device may have. */
export const MAX_STATE_VALUES = 65536;
const MAX_NAME_LENGTH = 256;
export const MAX_VALUE_LENGTH = 65536;

export function encodeValueNames({ uuid, major, minor, names }: ValueNames): Uint8Array {
  const encoded = names.map((name) => new TextEncoder().encode(name));
  const bytes = new Uint8Array(encoded.reduce((sum, name) => sum + 2 + name.length, NAMES_HEAD_LENGTH));
  const view = new DataView(bytes.buffer);
  bytes.set(uuid);
  view.setUint16(16, major, true);
  view.setUint16(18, minor, true);
  view.setUint32(20, names.length, true);
  let at = NAMES_HEAD_LENGTH;
  for (const name of encoded) {
    view.setUint16(at, name.length, true);
    bytes.set(name, at + 2);
    at += 2 + name.length;
  }
  return bytes;
}

export function decodeValueNames(bytes: Uint8Array): ValueNames {
  const view = viewOf(bytes);
  requireBytes(view, 0, bytes.length, NAMES_HEAD_LENGTH, 'DEVSTATE_VALUES');
  const count = view.getUint32(20, true);
  if (count > MAX_STATE_VALUES)
    throw new RequestError(Errno.EPROTO, `DEVSTATE_VALUES claims ${count} values`);
  const names: string[] = [];
  for (let at = NAMES_HEAD_LENGTH; names.length < count; ) {
    const name = readName(bytes, at, bytes.length);
    names.push(name.text);
    at = name.end;
  }
  return {
    uuid: bytes.slice(0, UUID_LENGTH),
    major: view.getUint16(16, true),
    minor: view.getUint16(18, true),
    names,
  };
}

export function encodeValue(value: StateValue): Uint8Array {
  if (typeof value === 'number') {
    if (!Number.isSafeInteger(value) || value < 0) {
      const what = 'is no whole number from 0 to 2^53 - 1; give it as text or bytes';
      throw new RequestError(Errno.EINVAL, `the value ${value} ${what}`);
    }
    const bytes = Uint8Array.of(Kind.UNSIGNED, 0, 0, 0, 0, 0, 0, 0, 0);
    writeU64(viewOf(bytes), 1, value);
    return bytes;
  }
  if (typeof value === 'boolean') return Uint8Array.of(Kind.BOOLEAN, value ? 1 : 0);
  const isText = typeof value === 'string';
  const content = isText ? new TextEncoder().encode(value) : value;
  if (content.length > MAX_VALUE_LENGTH)
    throw new RequestError(Errno.E2BIG, `a value of ${content.length} bytes`);
  const bytes = new Uint8Array(1 + content.length);
  bytes[0] = isText ? Kind.TEXT : Kind.BYTES;
  bytes.set(content, 1);
  return bytes;
}

export function decodeValue(bytes: Uint8Array): StateValue {
  const content = bytes.subarray(1);
  if (content.length > MAX_VALUE_LENGTH)
    throw new RequestError(Errno.E2BIG, `a value of ${content.length} bytes`);
  switch (bytes[0]) {
    case Kind.UNSIGNED:
      requireBytes(viewOf(bytes), 1, bytes.length, 8, 'DEVSTATE_VALUES number');
      return readU64(viewOf(bytes), 1);
    case Kind.BOOLEAN:
      requireBytes(viewOf(bytes), 1, bytes.length, 1, 'DEVSTATE_VALUES boolean');
      return content[0] === 1;
    case Kind.TEXT:
      return textOf(content);
    case Kind.BYTES:
      return content.slice();
    default:
      throw new RequestError(Errno.EPROTO, `DEVSTATE_VALUES has no value of kind ${bytes[0]}`);
  }
}

export function encodeNamedValue(name: string, value: StateValue): Uint8Array {
  const [text, content] = [new TextEncoder().encode(name), encodeValue(value)];
  const bytes = new Uint8Array(2 + text.length + content.length);
  viewOf(bytes).setUint16(0, text.length, true);
  bytes.set(text, 2);
  bytes.set(content, 2 + text.length);
  return bytes;
}

export function decodeNamedValue(bytes: Uint8Array): { name: string; value: StateValue } {
  const { text, end } = readName(bytes, 0, bytes.length);
  return { name: text, value: decodeValue(bytes.subarray(end)) };
}

function readName(bytes: Uint8Array, at: number, limit: number): { text: string; end: number } {
  const view = viewOf(bytes);
  requireBytes(view, at, limit, 2, 'DEVSTATE_VALUES name');
  const length = view.getUint16(at, true);
  if (length > MAX_NAME_LENGTH) throw new RequestError(Errno.EINVAL, `a name of ${length} bytes`);
  requireBytes(view, at + 2, limit, length, 'DEVSTATE_VALUES name');
  const end = at + 2 + length;
  return { text: textOf(bytes.subarray(at + 2, end)), end };
}

/** The name in a GET; empty if it asks for all names. */
export function decodeValueName(bytes: Uint8Array): string {
  if (bytes.length > MAX_NAME_LENGTH) throw new RequestError(Errno.EINVAL, `a name of ${bytes.length} bytes`);
  return textOf(bytes);
}

/** All of it: a byte order mark at its beginning is a character like any other. */
function textOf(bytes: Uint8Array): string {
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
