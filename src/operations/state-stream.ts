// SPDX-License-Identifier: Apache-2.0
/** Moving a device's state: between two devices, out of one, into one. */

import type { MigrationEnd } from '../migration/index.js';
import { unlessAborted } from './waiting.js';

/** Bytes asked for at a time, as far as the server lets us. */
const CHUNK_LENGTH = 1024 * 1024;

/** After so many the device changes faster than it is read, and pre-copy gains nothing. */
const MAX_PRECOPY_ROUNDS = 10;

/** Room for what is read at a time: a chunk of v1 as a whole, since a destination of v1 may need it like that. */
function bufferFor(source: MigrationEnd, destination: MigrationEnd = source): Uint8Array {
  const { protocol, maxChunk } = source;
  return new Uint8Array(
    protocol === 'v1' ? maxChunk : Math.min(CHUNK_LENGTH, maxChunk, destination.maxChunk),
  );
}

/**
 * Moves what the source has to give now: in pre-copy one round, in STOP_COPY all the rest. The next chunk is read while
 * the last one is written.
 * @param whole chunks of v1 are not to be divided: what is in them is unknown
 * @returns bytes moved
 */
export async function transferState(
  source: MigrationEnd,
  destination: MigrationEnd,
  signal?: AbortSignal,
  whole = false,
): Promise<number> {
  let [reading, writing] = [bufferFor(source, destination), bufferFor(source, destination)];
  let written: Promise<void> = Promise.resolve();
  let total = 0;
  for (;;) {
    signal?.throwIfAborted();
    const [size] = await unlessAborted(Promise.all([source.readData(reading), written]), signal);
    if (size === 0) return total;
    total += size;
    [reading, writing] = [writing, reading];
    written = writeState(destination, writing.subarray(0, size), whole && source.protocol === 'v1');
    // Looked at in the next turn, if there is one: until then no one handles its failure.
    written.catch(() => {});
  }
}

/** The state of a device in STOP_COPY, chunk by chunk; a chunk is valid until the next is asked for. */
export async function* readState(source: MigrationEnd, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  const buffer = bufferFor(source);
  for (;;) {
    const size = await unlessAborted(source.readData(buffer), signal);
    if (size === 0) return;
    yield buffer.subarray(0, size);
  }
}

/**
 * What a device in PRE_COPY has to give before it stops, chunk by chunk as {@link readState}: its first state, and what
 * has changed until that is little. A device that does not tell how much there is, is read once, until it has no more.
 */
export async function* readPrecopy(source: MigrationEnd, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  const buffer = bufferFor(source);
  for (let round = 0; round < MAX_PRECOPY_ROUNDS; round++) {
    const info = await source.precopyInfo();
    if (info !== undefined && info.initial === 0 && info.dirty <= CHUNK_LENGTH) return;
    // Not until it has no more: a device that changes faster than it is read always has.
    let wanted = info === undefined ? Number.POSITIVE_INFINITY : info.initial + info.dirty;
    while (wanted > 0) {
      const size = await unlessAborted(source.readData(buffer), signal);
      if (size === 0) break;
      wanted -= size;
      yield buffer.subarray(0, size);
    }
    if (info === undefined) return;
  }
}

/** Writes `bytes` to a device in RESUMING, in chunks that it takes, or in one where v1 needs it `whole`. */
export async function writeState(destination: MigrationEnd, bytes: Uint8Array, whole = false): Promise<void> {
  const length = Math.min(CHUNK_LENGTH, destination.maxChunk);
  if (whole && destination.protocol === 'v1') return destination.writeData(bytes, { whole });
  for (let at = 0; at < bytes.length; at += length)
    await destination.writeData(bytes.subarray(at, at + length));
}
