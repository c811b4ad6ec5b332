// SPDX-License-Identifier: Apache-2.0
/** Bytes that travel as a memfd nobody can change any more. */

import { readSync, writeSync } from 'node:fs';
import { check, native, Seal } from '../native/index.js';
import { Fd } from '../transport/index.js';
import { malformed } from './protocol.js';

/** A memfd that holds `parts`, with all seals. @throws DEVSTATE_E_SYSTEM */
export function sealedMemory(name: string, parts: readonly Uint8Array[]): Fd {
  const fd = new Fd(check(native.memfdCreate(name), `make the memory file ${name}`));
  try {
    for (const part of parts) writeAll(fd.number, part);
    const seals = Seal.seal | Seal.shrink | Seal.grow | Seal.write;
    check(native.addSeals(fd.number, seals), `seal the memory file ${name}`);
    return fd;
  } catch (error) {
    fd.close();
    throw error;
  }
}

function writeAll(fd: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done);
}

/** All of a sealed memfd, piece by piece; a piece is valid until the next. @throws DEVSTATE_E_HANDOFF_BUNDLE beyond `limit` bytes */
export function* readSealed(fd: Fd, limit: number, chunkLength = 1024 * 1024): Generator<Uint8Array> {
  const stat = new Float64Array(4);
  check(native.stat(fd.number, stat), 'examine a memory file');
  const length = stat[0]!;
  if (length > limit) throw malformed(`a state of ${length} bytes; at most ${limit} are taken`);
  const chunk = new Uint8Array(Math.min(length, chunkLength));
  for (let at = 0; at < length; ) {
    const got = readSync(fd.number, chunk, 0, Math.min(chunk.length, length - at), at);
    if (got === 0) throw malformed('a memory file is shorter than it was');
    at += got;
    yield chunk.subarray(0, got);
  }
}
