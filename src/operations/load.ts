// SPDX-License-Identifier: Apache-2.0
/** Loads a device's state from a file. What is not a whole and intact blob never reaches the device. */

import { createReadStream } from 'node:fs';
import type { DeviceDescription } from '../client/index.js';
import { DevstateError } from '../errors.js';
import { EnvelopeDecoder, type EnvelopeHeader, modelDifferences } from '../formats/index.js';
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
 * @throws DEVSTATE_E_INPUT, DEVSTATE_E_ENVELOPE_…, DEVSTATE_E_INCOMPATIBLE before the device is touched (what comes from
 * stdin is looked at as it comes: its beginning before, the rest while the device takes it);
 * DEVSTATE_E_REFUSED when the device does not take the state. A load that was begun and fails resets the device.
 */
export async function load(options: LoadOptions): Promise<{ bytes: number }> {
  const { device } = await openDeviceSocket(options.migrationSocket);
  let begun = false;
  try {
    const description = await device.description();
    if (options.input !== '-') {
      const decoder = newDecoder(description);
      for await (const chunk of readInput(options.input)) decoder.push(chunk);
      decoder.finish();
    }
    const decoder = newDecoder(description);
    let bytes = 0;
    for await (const chunk of readInput(options.input)) {
      decoder.push(chunk);
      if (!begun) await device.setState(MigrationState.RESUMING);
      begun = true;
      await writeState(device, chunk);
      bytes += chunk.length;
    }
    decoder.finish();
    await device.setState(options.afterwards === 'run' ? MigrationState.RUNNING : MigrationState.STOP);
    return { bytes };
  } catch (error) {
    // A load that was begun can only be given up.
    if (begun) await device.reset().catch(() => {});
    throw error;
  } finally {
    device.close();
  }
}

/** Refuses a state that is of another device than this one, when it says what it is. */
function newDecoder(description: DeviceDescription | undefined): EnvelopeDecoder {
  return new EnvelopeDecoder({
    onHeader: (header) => {
      const reasons = description === undefined ? [] : misfits(header, description);
      if (reasons.length === 0) return;
      const message = `the state does not fit the device: ${reasons.join('; ')}`;
      throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
    },
  });
}

function misfits(header: EnvelopeHeader, { model, formats }: DeviceDescription): string[] {
  const reasons = modelDifferences({ uri: header.model, parameters: header.parameters }, model);
  const format = formats.find(({ uuid }) => uuid === header.format);
  if (format === undefined) reasons.push(`the device does not know the format ${header.format}`);
  else if (format.version.major !== header.version.major) {
    reasons.push(
      `the device does not know version ${header.version.major} of ${format.name}, but ${format.version.major}`,
    );
  }
  return reasons;
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
