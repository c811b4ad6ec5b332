// SPDX-License-Identifier: Apache-2.0
/** Moving a device's state: between two devices, out of one, into one. */

import type { MigrationClient } from '../client/index.js';
import { unlessAborted } from './waiting.js';

/** Bytes asked for at a time, as far as the server lets us. */
const CHUNK_LENGTH = 1024 * 1024;

function chunkFor(...devices: MigrationClient[]): number {
  return Math.min(CHUNK_LENGTH, ...devices.map(({ client }) => client.maxTransfer));
}

/**
 * Moves what the source has to give now: in pre-copy one round, in STOP_COPY all the rest. The next chunk is read while
 * the last one is written. @returns bytes moved
 */
export async function transferState(
  source: MigrationClient,
  destination: MigrationClient,
  signal?: AbortSignal,
): Promise<number> {
  const length = chunkFor(source, destination);
  let [reading, writing] = [new Uint8Array(length), new Uint8Array(length)];
  let written: Promise<void> = Promise.resolve();
  let total = 0;
  for (;;) {
    signal?.throwIfAborted();
    const [size] = await unlessAborted(Promise.all([source.readData(reading), written]), signal);
    if (size === 0) return total;
    total += size;
    [reading, writing] = [writing, reading];
    written = destination.writeData(writing.subarray(0, size));
    // Looked at in the next turn, if there is one: until then its failure is nobody's.
    written.catch(() => {});
  }
}

/** The state of a device in STOP_COPY, chunk by chunk; a chunk is valid until the next is asked for. */
export async function* readState(source: MigrationClient, signal?: AbortSignal): AsyncGenerator<Uint8Array> {
  const buffer = new Uint8Array(chunkFor(source));
  for (;;) {
    const size = await unlessAborted(source.readData(buffer), signal);
    if (size === 0) return;
    yield buffer.subarray(0, size);
  }
}

/** Writes `bytes` to a device in RESUMING, in chunks that it takes. */
export async function writeState(destination: MigrationClient, bytes: Uint8Array): Promise<void> {
  const length = chunkFor(destination);
  for (let at = 0; at < bytes.length; at += length)
    await destination.writeData(bytes.subarray(at, at + length));
}
