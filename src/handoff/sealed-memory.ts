// SPDX-License-Identifier: Apache-2.0
/** Bytes that travel as a memfd no one can change any more. They may be hundreds of megabytes: others have their turns. */

import { readSync, writeSync } from 'node:fs';
import { malformed } from '../documents/index.js';
import { check, native, Seal } from '../native/index.js';
import { Fd } from '../transport/index.js';
import { eachInTurns } from '../turns.js';

/** Copied at a time, bytes: well below a millisecond. */
const PIECE = 1024 * 1024;

/** A memfd that holds `parts`, with all seals. They must not change until it is there. @throws DEVSTATE_E_SYSTEM */
export async function sealedMemory(name: string, parts: readonly Uint8Array[]): Promise<Fd> {
  const fd = new Fd(check(native.memfdCreate(name), `make the memory file ${name}`));
  try {
    await eachInTurns(piecesOf(parts), (piece) => writeAll(fd.number, piece));
    const seals = Seal.seal | Seal.shrink | Seal.grow | Seal.write;
    check(native.addSeals(fd.number, seals), `seal the memory file ${name}`);
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

function* piecesOf(parts: readonly Uint8Array[]): Generator<Uint8Array> {
  for (const part of parts)
    for (let at = 0; at < part.length; at += PIECE) yield part.subarray(at, at + PIECE);
}

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done);
}

function lengthOf(fd: Fd, limit: number): number {
  const stat = new Float64Array(4);
  check(native.stat(fd.number, stat), 'examine a memory file');
  const length = stat[0]!;
  if (length > limit) throw malformed(`a state of ${length} bytes; at most ${limit} are taken`);
  return length;
}

/** All of a sealed memfd, piece by piece; a piece is valid until the next. @throws DEVSTATE_E_HANDOFF_BUNDLE beyond `limit` bytes */
export function* readSealed(fd: Fd, limit: number): Generator<Uint8Array> {
  const length = lengthOf(fd, limit);
  const chunk = new Uint8Array(Math.min(length, PIECE));
  for (let at = 0; at < length; ) {
    const piece = chunk.subarray(0, Math.min(chunk.length, length - at));
    readAll(fd.number, piece, at);
    at += piece.length;
    yield piece;
  }
}

/** All of a sealed memfd at once. @throws DEVSTATE_E_HANDOFF_BUNDLE beyond `limit` bytes */
export async function sealedContent(fd: Fd, limit: number): Promise<Uint8Array> {
  const content = Buffer.allocUnsafeSlow(lengthOf(fd, limit));
  let at = 0;
  await eachInTurns(piecesOf([content]), (piece) => {
    readAll(fd.number, piece, at);
    at += piece.length;
  });
  return content;
}

function readAll(fd: number, target: Uint8Array, position: number): void {
  for (let done = 0; done < target.length; ) {
    const got = readSync(fd, target, done, target.length - done, position + done);
    if (got === 0) throw malformed('a memory file is shorter than it was');
    done += got;
  }
}
