// SPDX-License-Identifier: Apache-2.0
/** Saves a device's state to a file. The device stops for it, and by default runs on. */

import { createWriteStream } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { pipeline } from 'node:stream/promises';
import type { MigrationClient } from '../client/index.js';
import { DevstateError } from '../errors.js';
import { isSameName } from '../formats/index.js';
import { MigrationState } from '../wire/index.js';
import { type DeviceSocketOptions, openDeviceSocket } from './device-socket.js';
import { askPeer, bestFeature, type StatePeer } from './state-plan.js';
import { readPeer } from './state-transfer.js';
import { unlessAborted } from './waiting.js';

export interface SaveOptions extends DeviceSocketOptions {
  readonly migrationSocket: string;
  /** Where to; `-` for stdout. An existing file is replaced only by a complete one. */
  readonly output: string;
  /** The format, by name or UUID, or `auto` for the device's own choice. Default: `auto`. */
  readonly format?: string;
  /** Compress it, if the device can. */
  readonly compress?: boolean;
  /** What the device does afterwards. */
  readonly afterwards: 'run' | 'stop';
  /** Gives up: the device goes on as it was, and nothing is written. */
  readonly signal?: AbortSignal;
}

export interface SaveResult {
  readonly bytes: number;
  /** Milliseconds for which the device was stopped, if it runs again. */
  readonly stoppedMs: number;
}

/**
 * @throws DEVSTATE_E_CONNECT, DEVSTATE_E_NOT_MIGRATABLE, DEVSTATE_E_REFUSED, DEVSTATE_E_OUTPUT, DEVSTATE_E_CANCELLED; the
 * device then goes on as it was
 */
export async function save(options: SaveOptions): Promise<SaveResult> {
  const { signal } = options;
  const { device } = await openDeviceSocket(options.migrationSocket, options);
  try {
    const peer = await askPeer(device);
    await select(device, peer, options);
    const before = await device.state();
    const started = performance.now();
    try {
      // Somebody may have begun to save and died: what is left of that is no whole state.
      if (before === MigrationState.STOP_COPY) await device.setState(MigrationState.STOP);
      await unlessAborted(device.setState(MigrationState.STOP_COPY), signal);
      const bytes = await writeOut(options.output, readPeer(peer, device, signal));
      signal?.throwIfAborted();
      await device.setState(options.afterwards === 'run' ? MigrationState.RUNNING : MigrationState.STOP);
      return { bytes, stoppedMs: performance.now() - started };
    } catch (error) {
      await device.setState(before).catch(() => {});
      if (signal?.aborted === true)
        throw new DevstateError('DEVSTATE_E_CANCELLED', 'the saving was cancelled');
      throw error;
    }
  } finally {
    device.close();
  }
}

/** @throws DEVSTATE_E_INCOMPATIBLE when the device does not save that format */
async function select(
  device: MigrationClient,
  { offers, interface: how }: StatePeer,
  { format = 'auto', compress = false }: SaveOptions,
): Promise<void> {
  const offer = format === 'auto' ? offers[0] : offers.find((one) => one.save && isSameName(one, format));
  if (offer === undefined && format !== 'auto') {
    const known =
      offers.length === 0 ? 'it does not say what it saves' : offers.map(({ name }) => name).join(', ');
    const message = `the device does not save ${format} (${known}); save it as it is and use devstate convert`;
    throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
  }
  // Selected even if it is the device's first: one that copies another make has, for who selects nothing, no envelope.
  if (how !== 'formats' || offer === undefined) return;
  await device.selectFormat(offer, 'save', compress ? bestFeature(offer.features) : []);
}

/** Writes all chunks, and makes the file appear under its name only when it is whole and on disk. */
async function writeOut(path: string, chunks: AsyncIterable<Uint8Array>): Promise<number> {
  let bytes = 0;
  // Chunks share a buffer, so a stream that holds on to them needs copies.
  async function* counted(): AsyncGenerator<Uint8Array> {
    for await (const chunk of chunks) {
      bytes += chunk.length;
      yield chunk.slice();
    }
  }
  const partial = path === '-' ? undefined : `${path}.partial-${process.pid}`;
  try {
    if (partial === undefined) {
      await pipeline(counted(), process.stdout, { end: false });
      return bytes;
    }
    await pipeline(counted(), createWriteStream(partial, { flush: true, mode: 0o600 }));
    await rename(partial, path);
    const directory = await open(dirname(path), 'r');
    await directory.sync().finally(() => directory.close());
    return bytes;
  } catch (cause) {
    if (partial !== undefined) await rm(partial, { force: true }).catch(() => {});
    if (cause instanceof DevstateError) throw cause;
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new DevstateError(
      'DEVSTATE_E_OUTPUT',
      `cannot write ${path === '-' ? 'to stdout' : path}: ${why}`,
      {
        cause,
      },
    );
  }
}
