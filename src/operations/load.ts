// SPDX-License-Identifier: Apache-2.0
/**
 * Loads a device's state from a file. What is not a whole and intact blob never reaches the device, unless that has no
 * formats: then what is no blob may be what another such device has saved.
 */

import { createReadStream } from 'node:fs';
import { DevstateError } from '../errors.js';
import { MigrationState } from '../wire/index.js';
import { type DeviceSocketOptions, openDeviceSocket } from './device-socket.js';
import { openSavedState } from './saved-state.js';
import { askPeer, type FormatOptions } from './state-plan.js';
import { createSink, type StateSink } from './state-transfer.js';

export interface LoadOptions extends FormatOptions, DeviceSocketOptions {
  readonly migrationSocket: string;
  /** The blob; `-` for stdin. */
  readonly input: string;
  /** What the device does afterwards. */
  readonly afterwards: 'run' | 'stop';
}

const READ_LENGTH = 1024 * 1024;

/**
 * A state in a format that the device does not have is converted on the way, if that loses nothing (or may).
 * @throws DEVSTATE_E_INPUT, DEVSTATE_E_ENVELOPE_…, DEVSTATE_E_INCOMPATIBLE before the device is touched (what comes from
 * stdin is looked at as it comes: its beginning before, the rest while the device takes it);
 * DEVSTATE_E_REFUSED when the device does not take the state. A load that was begun and fails resets the device.
 */
export async function load(options: LoadOptions): Promise<{ bytes: number }> {
  const { device } = await openDeviceSocket(options.migrationSocket, options);
  let sink: StateSink | undefined;
  try {
    const peer = await askPeer(device);
    if (options.input !== '-') {
      const checked = openSavedState(peer, options);
      for await (const chunk of readInput(options.input)) checked.push(chunk);
      checked.finish();
    }
    const state = openSavedState(peer, options);
    /** What came before it was known how to give it. */
    const held: Uint8Array[] = [];
    const give = async (): Promise<void> => {
      if (state.plan === undefined) return;
      if (sink === undefined) {
        const taken = state.plan.negotiation?.taken;
        if (taken !== undefined && peer.interface === 'formats') await device.selectFormat(taken.to, 'load');
        sink = createSink(state.plan, device);
        await device.setState(MigrationState.RESUMING);
      }
      for (const piece of held.splice(0)) await sink.write(piece);
    };
    let bytes = 0;
    for await (const chunk of readInput(options.input)) {
      state.push(chunk);
      bytes += chunk.length;
      held.push(chunk);
      await give();
    }
    state.finish();
    await give();
    await sink?.finish();
    await device.setState(options.afterwards === 'run' ? MigrationState.RUNNING : MigrationState.STOP);
    return { bytes };
  } catch (error) {
    // A load that was begun can only be given up.
    if (sink !== undefined) await device.reset().catch(() => {});
    throw error;
  } finally {
    device.close();
  }
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
