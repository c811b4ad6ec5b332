// SPDX-License-Identifier: Apache-2.0
/**
 * Streams that a program has compressed: by Node.js's zlib, or by the program itself, in a process that gets the bytes by a
 * pipe and whose memory has a limit. Memory does not grow with what comes out, and what comes out has a limit too.
 */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { Readable, type Writable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { DevstateError } from '../../errors.js';

/** Names as `recognise` gives them. */
export type Compression = 'gzip' | 'bzip2' | 'xz' | 'lzma' | 'zstd' | 'lzop' | 'lz4' | 'lzip';

/** Programs that write to stdout what they read, decompressed. */
const PROGRAMS: { readonly [name in Exclude<Compression, 'gzip'>]: readonly string[] } = {
  bzip2: ['bzip2', '-dc'],
  xz: ['xz', '-dc', '--memlimit-decompress=512MiB'],
  lzma: ['xz', '-dc', '--format=lzma', '--memlimit-decompress=512MiB'],
  zstd: ['zstd', '-dcq', '--memory=512MB'],
  // Without the option it ends with 2 after a file of several parts, all of which it has decompressed.
  lzop: ['lzop', '-dc', '--ignore-warn'],
  lz4: ['lz4', '-dc'],
  lzip: ['lzip', '-dc'],
};

/** Characters of what a program says when it fails. */
const COMPLAINT_LENGTH = 300;

/** How the programs say that their input stops early. lzop names the errno of an earlier call that tried for a terminal. */
const CUT_OFF = /unexpected end|premature|truncated|ends unexpectedly|inappropriate ioctl/i;
/** How they say that the limit of their memory is too small: the writer has chosen a larger window. */
const NEEDS_MEMORY = /memory usage limit|too much memory/i;
/** The name of the program and of its input, before what it says. */
const PREFIX = /^(\w+: )?(<stdin>|\(stdin\)|\/\*stdin\*\\) ?: ?/;

export function isCompression(name: string): name is Compression {
  return name === 'gzip' || name in PROGRAMS;
}

export interface DecompressOptions {
  /** Bytes that may come out, when so many have gone in. */
  readonly limit: (bytesIn: number) => number;
}

/** Thrown when more than the limit comes out. */
export class TooMuchOutput extends Error {
  readonly bytes: number;
  constructor(bytes: number) {
    super(`${bytes} bytes have come out`);
    this.bytes = bytes;
  }
}

/**
 * The bytes, in pieces.
 * @throws DEVSTATE_E_CONTENT_UNSUPPORTED where the program is not installed, _TRUNCATED or _DAMAGED, {@link TooMuchOutput},
 * and what `chunks` throws
 */
export async function* decompressed(
  chunks: AsyncIterable<Uint8Array>,
  compression: Compression,
  { limit }: DecompressOptions,
): AsyncGenerator<Uint8Array> {
  let bytesIn = 0;
  let bytesOut = 0;
  const counted = async function* (): AsyncGenerator<Uint8Array> {
    for await (const chunk of chunks) {
      bytesIn += chunk.length;
      // The piece is valid until the next is asked for; the caller may keep it.
      yield Buffer.from(chunk);
    }
  };
  const pieces = compression === 'gzip' ? gunzipped(counted()) : piped(counted(), compression);
  for await (const piece of pieces) {
    bytesOut += piece.length;
    if (bytesOut > limit(bytesIn)) throw new TooMuchOutput(bytesOut);
    yield piece;
  }
}

async function* gunzipped(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const gunzip = createGunzip();
  const source = Readable.from(chunks, { objectMode: false });
  source.on('error', (error) => gunzip.destroy(error));
  source.pipe(gunzip);
  try {
    yield* gunzip as AsyncIterable<Buffer>;
  } catch (cause) {
    const { code = '' } = cause as NodeJS.ErrnoException;
    if (code === 'Z_BUF_ERROR') throw defect('TRUNCATED', 'gzip', 'it stops before its end', cause);
    if (code.startsWith('Z_')) throw defect('DAMAGED', 'gzip', (cause as Error).message, cause);
    throw cause;
  } finally {
    source.destroy();
    gunzip.destroy();
  }
}

async function* piped(
  chunks: AsyncIterable<Uint8Array>,
  compression: Exclude<Compression, 'gzip'>,
): AsyncGenerator<Uint8Array> {
  const [program = '', ...args] = PROGRAMS[compression];
  const env = { ...process.env, LC_ALL: 'C' };
  const decompressor = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], env });
  const failed = once(decompressor, 'error').then(([error]) => error as NodeJS.ErrnoException);
  const ended = new Promise<number | null>((resolve) => decompressor.once('close', resolve));
  let complaint = '';
  decompressor.stderr.setEncoding('utf8').on('data', (text: string) => {
    complaint = (complaint + text).slice(0, COMPLAINT_LENGTH);
  });
  const fed = feed(chunks, decompressor.stdin);
  // Looked at below.
  fed.catch(() => {});
  try {
    const spawned = await Promise.race([failed, once(decompressor, 'spawn').then(() => undefined)]);
    if (spawned !== undefined) throw missing(program, compression, spawned);
    yield* decompressor.stdout as AsyncIterable<Buffer>;
    const code = await ended;
    const error = await fed;
    if (error !== undefined) throw error;
    if (code !== 0) throw failureOf(compression, complaint, code);
  } finally {
    decompressor.kill('SIGKILL');
  }
}

/** @returns what reading has failed with; that the program reads no more is its own to explain */
async function feed(chunks: AsyncIterable<Uint8Array>, into: Writable): Promise<unknown> {
  let closed = false;
  into.on('error', () => {
    closed = true;
  });
  into.on('close', () => {
    closed = true;
  });
  try {
    for await (const chunk of chunks) {
      if (closed) return undefined;
      if (!into.write(chunk)) await Promise.race([once(into, 'drain'), once(into, 'close')]).catch(() => {});
    }
    return undefined;
  } catch (error) {
    return error;
  } finally {
    into.end();
  }
}

function missing(program: string, compression: Compression, cause: NodeJS.ErrnoException): DevstateError {
  const why =
    cause.code === 'ENOENT' ? `the program ${program} is not installed` : `${program} does not start`;
  const message = `it is compressed with ${compression}, and ${why}: install it, or decompress the file first`;
  return new DevstateError('DEVSTATE_E_CONTENT_UNSUPPORTED', message, { cause });
}

/** Why a program has failed, by what it says. */
function failureOf(compression: Compression, complaint: string, code: number | null): DevstateError {
  if (NEEDS_MEMORY.test(complaint)) {
    const message = `what is compressed with ${compression} needs more than 512 MiB of memory to decompress (a long window): decompress the file first`;
    return new DevstateError('DEVSTATE_E_CONTENT_UNSUPPORTED', message);
  }
  if (CUT_OFF.test(complaint)) return defect('TRUNCATED', compression, 'it stops before its end');
  const said = complaint.trim().split('\n')[0]?.replace(PREFIX, '').trim();
  return defect('DAMAGED', compression, said || `the program ended with ${code}`);
}

function defect(kind: 'TRUNCATED' | 'DAMAGED', name: string, why: string, cause?: unknown): DevstateError {
  const message = `what is compressed with ${name} cannot be decompressed: ${why}`;
  return new DevstateError(`DEVSTATE_E_CONTENT_${kind}`, message, { cause });
}
