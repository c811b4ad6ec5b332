// SPDX-License-Identifier: Apache-2.0
/** Saves a device's state to a file. The device stops for it, and by default runs on. */

import type { MigrationClient } from '../client/index.js';
import { DevstateError } from '../errors.js';
import { isSameName } from '../formats/index.js';
import { MigrationState } from '../wire/index.js';
import { type DeviceSocketOptions, openDeviceSocket } from './device-socket.js';
import { withOutput } from './files/output.js';
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
      const bytes = await withOutput(options.output, async (output) => {
        for await (const chunk of readPeer(peer, device, signal)) {
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
