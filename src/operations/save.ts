// SPDX-License-Identifier: Apache-2.0
/** Saves a device's state to a file. The device stops for it, and by default runs on. */

import type { MigrationClient } from '../client/index.js';
import { DevstateError } from '../errors.js';
import { findFormat, isSameName, isUuid, parseUuid } from '../formats/index.js';
import { MigrationState } from '../wire/index.js';
import { type DeviceSocketOptions, openDeviceSocket } from './device-socket.js';
import { withOutput } from './files/output.js';
import { askPeer, bestFeature, type StatePeer } from './state-plan.js';
import { readPeer } from './state-transfer.js';
import { unlessAborted } from './waiting.js';
import { type Wrapping, wrapState } from './wrapped-state.js';

export interface SaveOptions extends DeviceSocketOptions {
  readonly migrationSocket: string;
  /** Where to; `-` for stdout. An existing file is replaced only by a complete one. */
  readonly output: string;
  /** The format, by name or UUID, or `auto` for the device's own choice. Default: `auto`. */
  readonly format?: string;
  /** URI of the model, for a device that does not say what it is: its stream is wrapped, as what `format` names. */
  readonly model?: string;
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
    const wrapping =
      options.model === undefined ? undefined : requireWrapping(peer, options.model, options.format);
    if (wrapping === undefined) await select(device, peer, options);
    const before = await device.state();
    if (before === MigrationState.RESUMING) {
      const message = 'the device waits for a state (--incoming): it has none of its own to save';
      throw new DevstateError('DEVSTATE_E_NOT_MIGRATABLE', message);
    }
    const started = performance.now();
    try {
      // Somebody may have begun to save and died: what is left of that is no whole state.
      if (before === MigrationState.STOP_COPY) await device.setState(MigrationState.STOP);
      await unlessAborted(device.setState(MigrationState.STOP_COPY), signal);
      const bytes = await withOutput(options.output, async (output) => {
        const chunks = readPeer(peer, device, signal);
        for await (const chunk of wrapping === undefined ? chunks : wrapState(chunks, wrapping)) {
          output.write(chunk);
          await output.flush();
        }
        signal?.throwIfAborted();
        return output.bytes;
      });
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

/** @throws DEVSTATE_E_USAGE for a device that says what it is, or without a format */
function requireWrapping(peer: StatePeer, model: string, format = 'auto'): Wrapping {
  if (peer.interface !== 'opaque')
    throw new DevstateError('DEVSTATE_E_USAGE', 'the device says of which model it is: leave --model out');
  const uuid = isUuid(format) ? parseUuid(format) : findFormat(format)?.uuid;
  if (uuid !== undefined) return { format: uuid, model };
  const message = `--model needs --format, a UUID or a registered name: what the stream is (not ${format})`;
  throw new DevstateError('DEVSTATE_E_USAGE', message);
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
