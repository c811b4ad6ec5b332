// SPDX-License-Identifier: Apache-2.0
/**
 * The subset of MessagePack that envelope metadata is written in: maps with text keys, arrays, text, bytes,
 * integers up to ±(2^53 − 1) and booleans; no nil, no floats, no extension types.
 *
 * This is not msgpackr, because the envelope is a norm for other languages and its reader faces hostile bytes:
 * msgpackr writes integers above 2^32 as floats, keeps the last of two equal keys, replaces invalid UTF-8
 * and renames the key `__proto__` in silence. Here each value has one encoding (the shortest) and anything else is refused.
 */
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

const utf8Decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const utf8Encoder = new TextEncoder();

/** Whether `name` may be a key of a metadata map (and so the name of a parameter or feature). */
export function isMetadataKey(name: string): boolean {
  return KEY.test(name);
}

/** The canonical encoding of `map`: shortest forms, keys in their order. DEVSTATE_E_ENVELOPE_METADATA on a value outside the subset. */
export function encodeMetadataMap(map: MetadataMap): Uint8Array {
  const parts: Uint8Array[] = [];
  encodeMap(map, parts, 1);
  return new Uint8Array(Buffer.concat(parts));
}

/**
 * The map that `bytes` hold, which must be all of them.
 * @param base offset of `bytes` in the blob, for errors
 * @throws EnvelopeError DEVSTATE_E_ENVELOPE_METADATA
 */
export function decodeMetadataMap(bytes: Uint8Array, base = 0): MetadataMap {
  return new MetadataReader(bytes, base).whole();
}

function unwritable(what: string): DevstateError {
  return new DevstateError('DEVSTATE_E_ENVELOPE_METADATA', `${what} cannot be written as envelope metadata`);
}

function encodeValue(value: MetadataValue, parts: Uint8Array[], depth: number): void {
  if (typeof value === 'string') {
    if (LONE_SURROGATE.test(value)) throw unwritable('a string with a lone surrogate');
    const text = utf8Encoder.encode(value);
    parts.push(lengthHead(text.length, 0xa0, 32, 0xd9), text);
  } else if (typeof value === 'number') parts.push(encodeInteger(value));
  else if (typeof value === 'boolean') parts.push(Uint8Array.of(value ? 0xc3 : 0xc2));
  else if (value instanceof Uint8Array) parts.push(lengthHead(value.length, 0, 0, 0xc4), value);
  else if (Array.isArray(value)) {
    checkDepth(depth);
    parts.push(lengthHead(value.length, 0x90, 16, 0xdb));
    for (const item of value) encodeValue(item, parts, depth + 1);
  } else if (typeof value === 'object' && value !== null) encodeMap(value, parts, depth);
  else throw unwritable(`a value of type ${value === null ? 'null' : typeof value}`);
}

function encodeMap(map: MetadataMap, parts: Uint8Array[], depth: number): void {
  checkDepth(depth);
  const entries = Object.entries(map);
  parts.push(lengthHead(entries.length, 0x80, 16, 0xdd));
  for (const [key, value] of entries) {
    if (!isMetadataKey(key)) throw unwritable(`the key ${JSON.stringify(key.slice(0, 64))}`);
    encodeValue(key, parts, depth);
    encodeValue(value, parts, depth + 1);
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

/** Reads one map; every length is checked against the bytes that are left before it is believed. */
class MetadataReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #base: number;
  #at = 0;

  constructor(bytes: Uint8Array, base: number) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#base = base;
  }

  whole(): MetadataMap {
    const value = this.#value(1);
    if (!isMetadataMap(value)) throw this.#wrong('the metadata is not a map');
    if (this.#at !== this.#bytes.length) throw this.#wrong('bytes follow the metadata map');
    return value;
  }

  #wrong(message: string, cause?: unknown): EnvelopeError {
    return new EnvelopeError(
      'DEVSTATE_E_ENVELOPE_METADATA',
      message,
      { offset: this.#base + this.#at },
      cause,
    );
  }

  /** Moves past `length` bytes and returns where they start. */
  #take(length: number): number {
    if (length > this.#bytes.length - this.#at) throw this.#wrong('a metadata value runs past the end');
    this.#at += length;
    return this.#at - length;
  }

  #value(depth: number): MetadataValue {
    const head = this.#bytes[this.#take(1)] as number;
    if (head < 0x80) return head;
    if (head < 0x90) return this.#map(head & 0x0f, depth);
    if (head < 0xa0) return this.#array(head & 0x0f, depth);
    if (head < 0xc0) return this.#text(head & 0x1f);
    if (head >= 0xe0) return head - 0x100;
    switch (head) {
      case 0xc2:
        return false;
      case 0xc3:
        return true;
      case 0xc4:
      case 0xc5:
      case 0xc6:
        return this.#binary(this.#length(head - 0xc4));
      case 0xcc:
      case 0xcd:
      case 0xce:
        return this.#length(head - 0xcc);
      case 0xcf:
        return this.#integer(this.#view.getBigUint64(this.#take(8)));
      case 0xd0:
        return this.#view.getInt8(this.#take(1));
      case 0xd1:
        return this.#view.getInt16(this.#take(2));
      case 0xd2:
        return this.#view.getInt32(this.#take(4));
      case 0xd3:
        return this.#integer(this.#view.getBigInt64(this.#take(8)));
      case 0xd9:
      case 0xda:
      case 0xdb:
        return this.#text(this.#length(head - 0xd9));
      case 0xdc:
      case 0xdd:
        return this.#array(this.#length(head - 0xdb), depth);
      case 0xde:
      case 0xdf:
        return this.#map(this.#length(head - 0xdd), depth);
      default:
        throw this.#wrong(`MessagePack type 0x${head.toString(16)} is not allowed in metadata`);
    }
  }

  /** A big-endian unsigned number of 1, 2 or 4 bytes for `size` 0, 1 or 2. */
  #length(size: number): number {
    if (size === 0) return this.#view.getUint8(this.#take(1));
    return size === 1 ? this.#view.getUint16(this.#take(2)) : this.#view.getUint32(this.#take(4));
  }

  #integer(value: bigint): number {
    const number = Number(value);
    if (!Number.isSafeInteger(number)) throw this.#wrong('a metadata integer exceeds 2^53 − 1');
    return number;
  }

  #binary(length: number): Uint8Array {
    const start = this.#take(length);
    return this.#bytes.slice(start, start + length);
  }

  #text(length: number): string {
    const start = this.#take(length);
    try {
      return utf8Decoder.decode(this.#bytes.subarray(start, start + length));
    } catch (error) {
      throw this.#wrong('a metadata string is not UTF-8', error);
    }
  }

  #array(count: number, depth: number): MetadataValue[] {
    this.#enter(count, depth);
    const items: MetadataValue[] = [];
    for (let index = 0; index < count; index++) items.push(this.#value(depth + 1));
    return items;
  }

  #map(count: number, depth: number): MetadataMap {
    this.#enter(count, depth);
    const map: MetadataMap = {};
    for (let index = 0; index < count; index++) {
      const key = this.#value(METADATA_DEPTH_MAX + 1);
      if (typeof key !== 'string' || !isMetadataKey(key)) throw this.#wrong('a metadata key is not a name');
      if (Object.hasOwn(map, key)) throw this.#wrong(`the metadata key ${key} occurs twice`);
      map[key] = this.#value(depth + 1);
    }
    return map;
  }

  /** Each item takes at least a byte, so a count above the bytes that are left is a lie. */
  #enter(count: number, depth: number): void {
    if (depth > METADATA_DEPTH_MAX)
      throw this.#wrong(`the metadata is nested deeper than ${METADATA_DEPTH_MAX}`);
    if (count > this.#bytes.length - this.#at) throw this.#wrong('a metadata count runs past the end');
  }
}

/** Whether a metadata value is a map. */
export function isMetadataMap(value: MetadataValue | undefined): value is MetadataMap {
  return typeof value === 'object' && !Array.isArray(value) && !(value instanceof Uint8Array);
}
