// SPDX-License-Identifier: Apache-2.0
/**
 * Loads a device's state from a file. What is not a whole and intact blob never reaches the device, unless that has no
 * formats: then bytes that are recognised as nothing else may be what another such device has saved.
 */

import type { MigrationEnd } from '../migration/index.js';
import { MigrationState } from '../wire/index.js';
import type { DeviceSocketOptions } from './device-socket.js';
import { type InputFile, withInput } from './files/input.js';
import type { OwnerOptions } from './identity/index.js';
import { type DeviceAddress, openMigrationEnd, requireOwnedEnd } from './migration-end.js';
import { openSavedState } from './saved-state.js';
import { askPeer, type FormatOptions } from './state-plan.js';
import type { StateSink } from './state-sink.js';
import { createSink } from './state-transfer.js';

export type LoadOptions = DeviceAddress & LoadSettings;

export interface LoadSettings extends FormatOptions, DeviceSocketOptions, OwnerOptions {
  /** The blob; `-` for stdin. */
  readonly input: string;
  /** Give a device that does not say which formats it has the bytes as they are, whatever they are. Default: false. */
  readonly raw?: boolean;
  /** What the device does afterwards. */
  readonly afterwards: 'run' | 'stop';
}

/**
 * A state in a format that the device does not have is converted on the way, if that loses nothing (or may).
 * @throws DEVSTATE_E_INPUT, DEVSTATE_E_ENVELOPE_…, DEVSTATE_E_INCOMPATIBLE (also when a VMM has the device and it is not
 * proven that it is `owner`'s) before the device is touched (what comes from
 * stdin is looked at as it comes: its beginning before, the rest while the device takes it);
 * DEVSTATE_E_REFUSED when the device does not take the state. A load that was begun and fails resets the device.
 */
export async function load(options: LoadOptions): Promise<{ bytes: number }> {
  const end = await openMigrationEnd(options, options);
  try {
    await requireOwnedEnd(end, options, 'nothing was loaded');
    return await withInput(options.input, (input) => loadFrom(input, end.device, options));
  } finally {
    end.device.close();
  }
}

async function loadFrom(
  input: InputFile,
  device: MigrationEnd,
  options: LoadSettings,
): Promise<{ bytes: number }> {
  let sink: StateSink | undefined;
  try {
    const peer = await askPeer(device);
    if (input.size !== undefined) {
      const checked = openSavedState(peer, options);
      for await (const chunk of input.chunks()) checked.push(chunk);
      checked.finish();
    }
    const state = openSavedState(peer, options);
    /** What came before it was known how to give it. */
    const held: Uint8Array[] = [];
    const give = async (): Promise<StateSink | undefined> => {
      if (state.plan === undefined) return undefined;
      if (sink === undefined) {
        const taken = state.plan.negotiation?.taken;
        if (taken !== undefined && peer.interface === 'formats') await device.selectFormat(taken.to, 'load');
        sink = createSink(state.plan, device);
        await device.setState(MigrationState.RESUMING);
      }
      for (const piece of held.splice(0)) await sink.write(piece);
      return sink;
    };
    let bytes = 0;
    for await (const chunk of input.chunks()) {
      state.push(chunk);
      bytes += chunk.length;
      const taker = await give();
      // A chunk is ours only until the next.
      if (taker === undefined) held.push(new Uint8Array(chunk));
      else await taker.write(chunk);
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
  }
}
