// SPDX-License-Identifier: Apache-2.0
/**
 * Compressed payloads: features of the envelope that the two ends agree on, off unless asked for. Each payload is
 * compressed by itself, so that a reader needs no more memory than one record. See `formats/README.md`, "Features".
 *
 *     0  length u32   of the plain payload, 1 to RECORD_LENGTH_MAX
 *     4  data         the compressed payload
 */
import { promisify } from 'node:util';
import * as zlib from 'node:zlib';
import { RECORD_LENGTH_MAX, RecordFlag } from './layout.js';

/** One way to compress. */
interface Compression {
  /** Name of the feature. */
  readonly name: string;
  /** The flag of a record whose payload is compressed so. */
  readonly flag: number;
  readonly compress: (plain: Uint8Array) => Uint8Array;
  /** The same on another thread. */
  readonly compressLater: (plain: Uint8Array) => Promise<Uint8Array>;
  /** @param length bytes of the plain payload; a result of any other length, or bytes left over, is an error */
  readonly decompress: (data: Uint8Array, length: number) => Uint8Array;
  /** The same on another thread. */
  readonly decompressLater: (data: Uint8Array, length: number) => Promise<Uint8Array>;
}

/** Node 22.15 has it, earlier ones do not. */
interface ZstdFunctions {
  zstdCompressSync?(plain: Uint8Array): Buffer;
  zstdDecompressSync?(data: Uint8Array, options: DecompressOptions): unknown;
  zstdDecompress?: LaterFunction;
  zstdCompress?(plain: Uint8Array, done: (error: Error | null, data: Buffer) => void): void;
}

type LaterFunction = (
  data: Uint8Array,
  options: DecompressOptions,
  done: (error: Error | null, result: unknown) => void,
) => void;

interface DecompressOptions {
  info: true;
  maxOutputLength: number;
  chunkSize: number;
}

const LENGTH_SIZE = 4;
/** Shorter payloads do not become smaller by enough. */
const SHORTEST = 256;

/** The fastest level: state is compressed while a guest waits for it. */
const DEFLATE_OPTIONS = { level: 1 };

const deflate: Compression = {
  name: 'deflate',
  flag: RecordFlag.deflate,
  compress: (plain) => zlib.deflateRawSync(plain, DEFLATE_OPTIONS),
  compressLater: (plain) => promisify(zlib.deflateRaw)(plain, DEFLATE_OPTIONS),
  decompress: (data, length) => whole(zlib.inflateRawSync(data, limits(length)), data, length),
  decompressLater: (data, length) => later(zlib.inflateRaw as LaterFunction, data, length),
};

const { zstdCompressSync, zstdDecompressSync, zstdDecompress, zstdCompress }: ZstdFunctions =
  zlib as ZstdFunctions;

const zstd: Compression | undefined =
  zstdCompressSync === undefined ||
  zstdDecompressSync === undefined ||
  zstdDecompress === undefined ||
  zstdCompress === undefined
    ? undefined
    : {
        name: 'zstd',
        flag: RecordFlag.zstd,
        compress: (plain) => zstdCompressSync(plain),
        compressLater: promisify(zstdCompress),
        decompress: (data, length) => whole(zstdDecompressSync(data, limits(length)), data, length),
        decompressLater: (data, length) => later(zstdDecompress, data, length),
      };

const available: readonly Compression[] = zstd === undefined ? [deflate] : [zstd, deflate];

/** Names of the compressions that can be used here, the best first. */
export const COMPRESSIONS: readonly string[] = available.map(({ name }) => name);

/** The record flags of {@link COMPRESSIONS}, by feature. */
export const COMPRESSION_FLAGS: ReadonlyMap<string, number> = new Map(
  available.map(({ name, flag }) => [name, flag]),
);

/** Why a blob that requires `feature` cannot be read here, and what to do about it, as the rest of a sentence. */
export function withoutFeature(feature: string): string {
  return feature === 'zstd' && zstd === undefined
    ? `which Node.js ${process.versions.node} does not have: use Node.js 22.15 or newer, or save it without --compress`
    : 'which this reader does not have: save it without, or update devstate';
}

/** The flags of the compressions among `features`, of those too that cannot be used here. */
export function compressionFlags(features: readonly string[]): number {
  const { zstd, deflate } = RecordFlag;
  return (features.includes('zstd') ? zstd : 0) | (features.includes('deflate') ? deflate : 0);
}

/** What to write for a payload, and the flag that says how it is compressed. */
export interface StoredPayload {
  readonly payload: Uint8Array;
  readonly flag: number;
}

/** Compresses `payload`, if one of `features` says how and it becomes smaller. */
export function compressPayload(payload: Uint8Array, features: readonly string[]): StoredPayload {
  const way = wayFor(payload, features);
  return way === undefined ? { payload, flag: 0 } : smaller(payload, way.compress(payload), way);
}

/** The same on another thread. */
export async function compressPayloadLater(
  payload: Uint8Array,
  features: readonly string[],
): Promise<StoredPayload> {
  const way = wayFor(payload, features);
  return way === undefined ? { payload, flag: 0 } : smaller(payload, await way.compressLater(payload), way);
}

function wayFor(payload: Uint8Array, features: readonly string[]): Compression | undefined {
  return payload.length < SHORTEST ? undefined : available.find(({ name }) => features.includes(name));
}

function smaller(payload: Uint8Array, data: Uint8Array, way: Compression): StoredPayload {
  if (LENGTH_SIZE + data.length >= payload.length) return { payload, flag: 0 };
  const compressed = new Uint8Array(LENGTH_SIZE + data.length);
  new DataView(compressed.buffer).setUint32(0, payload.length, true);
  compressed.set(data, LENGTH_SIZE);
  return { payload: compressed, flag: way.flag };
}

/** A compressed payload that has not been decompressed. */
export interface SealedPayload {
  /** Bytes that it says it has when it is plain. */
  readonly plainLength: number;
  readonly open: () => Uint8Array;
  /** On another thread. */
  readonly openLater: () => Promise<Uint8Array>;
}

/**
 * What a record with these compression flags holds; undefined if it is compressed in a way that cannot be undone here.
 * @param flags not 0 @throws Error when it is not what the feature says, here and when it is opened
 */
export function sealedPayload(payload: Uint8Array, flags: number): SealedPayload | undefined {
  if ((flags & (flags - 1)) !== 0) throw new Error('it is said to be compressed in two ways');
  const way = available.find(({ flag }) => flag === flags);
  if (way === undefined) return undefined;
  if (payload.length < LENGTH_SIZE) throw new Error(`its ${payload.length} bytes hold no length`);
  const length = new DataView(payload.buffer, payload.byteOffset).getUint32(0, true);
  if (length === 0 || length > RECORD_LENGTH_MAX) throw new Error(`its plain length is given as ${length}`);
  const data = payload.subarray(LENGTH_SIZE);
  return {
    plainLength: length,
    open: () => way.decompress(data, length),
    openLater: () => way.decompressLater(data, length),
  };
}

/** Most plain bytes of a blob, unless it has many itself: {@link RATIO_MAX} for each. */
const PLAIN_MAX = 2 ** 30;
const RATIO_MAX = 64;

/** Whether payloads of `stored` bytes may be `plain` bytes when decompressed: a small blob must not cost much. */
export function mayInflateTo(plain: number, stored: number): boolean {
  return plain <= Math.max(PLAIN_MAX, RATIO_MAX * stored);
}

function later(call: LaterFunction, data: Uint8Array, length: number): Promise<Uint8Array> {
  return new Promise((resolve, reject) => {
    call(data, limits(length), (error, result) => {
      try {
        if (error !== null) throw error;
        resolve(whole(result, data, length));
      } catch (failure) {
        reject(failure);
      }
    });
  });
}

/** zlib stops where the output would become longer. It takes one buffer, of which what arrives decides how much is touched. */
function limits(length: number): DecompressOptions {
  return { info: true, maxOutputLength: length, chunkSize: Math.max(64, length + 1) };
}

/** What zlib gives with `info`: the output, and the engine that knows how much of the input it has used. */
function whole(result: unknown, data: Uint8Array, length: number): Uint8Array {
  const { buffer, engine } = result as { buffer: Buffer; engine: { bytesWritten: number } };
  if (buffer.length !== length) throw new Error(`it holds ${buffer.length} bytes instead of ${length}`);
  if (engine.bytesWritten !== data.length) throw new Error('bytes follow the compressed data');
  return buffer;
}
