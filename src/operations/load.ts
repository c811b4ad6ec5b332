// SPDX-License-Identifier: Apache-2.0
/** Loads a device's state from a file. What is not a whole and intact blob never reaches the device. */

import { createReadStream } from 'node:fs';
import { DevstateError } from '../errors.js';
import { EnvelopeDecoder } from '../formats/index.js';
import { MigrationState } from '../wire/index.js';
import { openDeviceSocket } from './device-socket.js';
import { writeState } from './state-stream.js';

export interface LoadOptions {
  readonly migrationSocket: string;
  /** The blob; `-` for stdin. */
  readonly input: string;
  /** What the device does afterwards. */
  readonly afterwards: 'run' | 'stop';
}

const READ_LENGTH = 1024 * 1024;

/**
 * @throws DEVSTATE_E_INPUT, DEVSTATE_E_ENVELOPE_… before the device is touched (from stdin: before it is changed),
 * DEVSTATE_E_REFUSED when the device does not take the state; it is then reset
 */
export async function load(options: LoadOptions): Promise<{ bytes: number }> {
  if (options.input !== '-') await verify(options.input);
  const { device } = await openDeviceSocket(options.migrationSocket);
  try {
    await device.setState(MigrationState.RESUMING);
    const decoder = new EnvelopeDecoder({});
    let bytes = 0;
    for await (const chunk of readInput(options.input)) {
      decoder.push(chunk);
      await writeState(device, chunk);
      bytes += chunk.length;
    }
    decoder.finish();
    await device.setState(options.afterwards === 'run' ? MigrationState.RUNNING : MigrationState.STOP);
    return { bytes };
  } catch (error) {
    // A load that was begun can only be given up.
    if ((await device.state().catch(() => MigrationState.RUNNING)) !== MigrationState.RUNNING) {
      await device.reset().catch(() => {});
    }
    throw error;
  } finally {
    device.close();
  }
}

async function verify(path: string): Promise<void> {
  const decoder = new EnvelopeDecoder({});
  for await (const chunk of readInput(path)) decoder.push(chunk);
  decoder.finish();
}

/** The bytes of a file or of stdin. @throws DEVSTATE_E_INPUT */
export async function* readInput(path: string): AsyncGenerator<Uint8Array> {
  const stream = path === '-' ? process.stdin : createReadStream(path, { highWaterMark: READ_LENGTH });
  try {
    for await (const chunk of stream) yield chunk as Buffer;
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new DevstateError('DEVSTATE_E_INPUT', `cannot read ${path}: ${why}`, { cause });
  }
}
