// SPDX-License-Identifier: Apache-2.0
/**
 * The subset of MessagePack that envelope metadata is written in: maps with text keys, arrays, text, bytes,
 * integers up to ±(2^53 − 1) and booleans; no nil, no floats, no extension types. Each value has one encoding, the shortest.
 *
 * msgpackr reads, our encoder decides: what it makes of the values that were read must be the bytes that were read. This
 * refuses all that msgpackr changes in silence (the first of two equal keys, invalid UTF-8, the key `__proto__`, floats).
 * msgpackr does not write here: it writes integers from 2^32 on as floats.
 */
import { Unpackr } from 'msgpackr/unpack';
import { DevstateError } from '../../errors.js';
import { EnvelopeError } from './envelope-error.js';

/** A value of the metadata map. */
export type MetadataValue = string | number | boolean | Uint8Array | MetadataValue[] | MetadataMap;
/** A map of the metadata. */
export type MetadataMap = { [key: string]: MetadataValue };

/** How many maps and arrays may be nested within each other, the outermost map included. */
export const METADATA_DEPTH_MAX = 8;

/** Keys start with a letter (so JavaScript keeps their order and none is special) and are at most 64 characters. */
const KEY = /^[A-Za-z][A-Za-z0-9._-]{0,63}$/;

const LONE_SURROGATE = /\p{Surrogate}/u;

const reader = new Unpackr({ useRecords: false, int64AsType: 'number', copyBuffers: true });
const utf8Encoder = new TextEncoder();

/** Whether `name` may be a key of a metadata map (and so the name of a parameter or feature). */
export function isMetadataKey(name: string): boolean {
  return KEY.test(name);
}

/** The canonical encoding of `map`: shortest forms, keys in their order. DEVSTATE_E_ENVELOPE_METADATA on a value outside the subset. */
export function encodeMetadataMap(map: MetadataMap): Uint8Array {
  return new MetadataWriter().whole(map);
}

/**
 * The map that `bytes` hold, which must be all of them.
 * @param base offset of `bytes` in the blob, for errors
 * @throws EnvelopeError DEVSTATE_E_ENVELOPE_METADATA, with the offset of the first byte that is wrong if that is known
 */
export function decodeMetadataMap(bytes: Uint8Array, base = 0): MetadataMap {
  const wrong = (message: string, at: number, cause?: unknown): EnvelopeError =>
    new EnvelopeError('DEVSTATE_E_ENVELOPE_METADATA', message, { offset: base + at }, cause);
  let value: MetadataValue;
  try {
    value = reader.unpack(bytes);
  } catch (error) {
    throw wrong('the metadata is not one MessagePack value', 0, error);
  }
  if (!isMetadataMap(value)) throw wrong('the metadata is not a map', 0);
  const writer = new MetadataWriter();
  let canonical: Uint8Array;
  try {
    canonical = writer.whole(value);
  } catch (error) {
    if (!(error instanceof DevstateError)) throw error;
    throw wrong(`the metadata is outside its subset of MessagePack: ${error.message}`, writer.length, error);
  }
  if (Buffer.compare(canonical, bytes) === 0) return value;
  const at = canonical.findIndex((byte, index) => byte !== bytes[index]);
  const what = 'a metadata value is not in its shortest form, not UTF-8, or a key that occurs twice';
  throw wrong(what, at === -1 ? canonical.length : at);
}

function unwritable(what: string): DevstateError {
  return new DevstateError('DEVSTATE_E_ENVELOPE_METADATA', `${what} cannot be written as envelope metadata`);
}

class MetadataWriter {
  readonly #parts: Uint8Array[] = [];
  #length = 0;

  /** Bytes written so far. */
  get length(): number {
    return this.#length;
  }

  whole(map: MetadataMap): Uint8Array {
    this.#map(map, 1);
    return new Uint8Array(Buffer.concat(this.#parts));
  }

  #put(...parts: Uint8Array[]): void {
    for (const part of parts) this.#length += part.length;
    this.#parts.push(...parts);
  }

  #value(value: MetadataValue, depth: number): void {
    if (typeof value === 'string') {
      if (LONE_SURROGATE.test(value)) throw unwritable('a string with a lone surrogate');
      const text = utf8Encoder.encode(value);
      this.#put(lengthHead(text.length, 0xa0, 32, 0xd9), text);
    } else if (typeof value === 'number') this.#put(encodeInteger(value));
    else if (typeof value === 'boolean') this.#put(Uint8Array.of(value ? 0xc3 : 0xc2));
    else if (value instanceof Uint8Array) this.#put(lengthHead(value.length, 0, 0, 0xc4), value);
    else if (Array.isArray(value)) {
      checkDepth(depth);
      this.#put(lengthHead(value.length, 0x90, 16, 0xdb));
      for (const item of value) this.#value(item, depth + 1);
    } else if (isMetadataMap(value)) this.#map(value, depth);
    else throw unwritable(`a value of type ${value === null ? 'null' : typeof value}`);
  }

  #map(map: MetadataMap, depth: number): void {
    checkDepth(depth);
    const entries = Object.entries(map);
    this.#put(lengthHead(entries.length, 0x80, 16, 0xdd));
    for (const [key, value] of entries) {
      if (!isMetadataKey(key)) throw unwritable(`the key ${JSON.stringify(key.slice(0, 64))}`);
      this.#value(key, depth);
      this.#value(value, depth + 1);
    }
  }
}

function checkDepth(depth: number): void {
  if (depth > METADATA_DEPTH_MAX) throw unwritable(`a value nested deeper than ${METADATA_DEPTH_MAX}`);
}

/**
 * The head of a text, bytes, array or map: a short form `short | length` below `shortLimit`, else `long` (8-bit
 * length; 0xdb and 0xdd, of arrays and maps, have none) or `long + 1` (16-bit length).
 */
function lengthHead(length: number, short: number, shortLimit: number, long: number): Uint8Array {
  if (length < shortLimit) return Uint8Array.of(short | length);
  if (length < 0x100 && (long === 0xd9 || long === 0xc4)) return Uint8Array.of(long, length);
  if (length < 0x1_0000) return Uint8Array.of(long + 1, length >> 8, length & 0xff);
  throw unwritable('a value longer than 65535');
}

function encodeInteger(value: number): Uint8Array {
  if (!Number.isSafeInteger(value))
    throw unwritable(`the number ${value}, not an integer within ±(2^53 − 1),`);
  if (value >= -32 && value < 128) return Uint8Array.of(value & 0xff);
  const head = Buffer.alloc(9);
  if (value >= 0) {
    if (value < 0x100) return Uint8Array.of(0xcc, value);
    if (value < 0x1_0000) return Uint8Array.of(0xcd, value >> 8, value & 0xff);
    head[0] = value < 2 ** 32 ? 0xce : 0xcf;
    if (value < 2 ** 32) return head.subarray(0, head.writeUInt32BE(value, 1));
    return head.subarray(0, head.writeBigUInt64BE(BigInt(value), 1));
  }
  if (value >= -0x80) return Uint8Array.of(0xd0, value & 0xff);
  if (value >= -0x8000) return Uint8Array.of(0xd1, (value >> 8) & 0xff, value & 0xff);
  head[0] = value >= -(2 ** 31) ? 0xd2 : 0xd3;
  if (value >= -(2 ** 31)) return head.subarray(0, head.writeInt32BE(value, 1));
  return head.subarray(0, head.writeBigInt64BE(BigInt(value), 1));
}

/** Whether a metadata value is a map. */
export function isMetadataMap(value: MetadataValue | undefined): value is MetadataMap {
  return (
    typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Uint8Array)
  );
}
