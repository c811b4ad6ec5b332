// SPDX-License-Identifier: Apache-2.0
/** Loads a device's state from a file. What is not a whole and intact blob never reaches the device. */

import { createReadStream } from 'node:fs';
import { DevstateError } from '../errors.js';
import { EnvelopeDecoder, type EnvelopeHeader, findFormat } from '../formats/index.js';
import { MigrationState } from '../wire/index.js';
import { openDeviceSocket } from './device-socket.js';
import {
  askPeer,
  type FormatOptions,
  planReasons,
  planState,
  type StatePeer,
  type StatePlan,
} from './state-plan.js';
import { createSink, type StateSink } from './state-transfer.js';

export interface LoadOptions extends FormatOptions {
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
  const { device } = await openDeviceSocket(options.migrationSocket);
  let sink: StateSink | undefined;
  try {
    const peer = await askPeer(device);
    if (options.input !== '-') {
      const { decoder } = newDecoder(peer, options);
      for await (const chunk of readInput(options.input)) decoder.push(chunk);
      decoder.finish();
    }
    const { decoder, plan } = newDecoder(peer, options);
    /** What came before the header was whole. */
    const held: Uint8Array[] = [];
    let bytes = 0;
    for await (const chunk of readInput(options.input)) {
      decoder.push(chunk);
      bytes += chunk.length;
      held.push(chunk);
      const chosen = plan();
      if (chosen === undefined) continue;
      if (sink === undefined) {
        const taken = chosen.negotiation?.taken;
        if (taken !== undefined && peer.interface === 'formats') await device.selectFormat(taken.to, 'load');
        sink = createSink(chosen, device);
        await device.setState(MigrationState.RESUMING);
      }
      for (const piece of held.splice(0)) await sink.write(piece);
    }
    decoder.finish();
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

/** Refuses a state that cannot go on in this device, when that says what it can; `plan` is there once the header is. */
function newDecoder(
  peer: StatePeer,
  options: FormatOptions,
): { decoder: EnvelopeDecoder; plan: () => StatePlan | undefined } {
  let plan: StatePlan | undefined;
  const decoder = new EnvelopeDecoder({
    onHeader: (header) => {
      const planned = planState(savedPeer(header, peer), peer, options);
      const reasons = planReasons(planned);
      if (reasons.length > 0) {
        const message = `the state does not fit the device: ${reasons.join('; ')}`;
        throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
      }
      plan = planned.plan;
    },
  });
  return { decoder, plan: () => plan };
}

/** A blob, as if a device offered it; to a device that does not say what it takes it is given as it is. */
function savedPeer(header: EnvelopeHeader, peer: StatePeer): StatePeer {
  if (peer.interface === 'opaque') return { interface: 'opaque', offers: [], model: undefined };
  const { format: uuid, version, features, model: uri, parameters } = header;
  const name = findFormat(uuid)?.name ?? uuid;
  const offer = { uuid, name, version, save: true, load: false, fidelity: 'complete', features } as const;
  return { interface: 'formats', offers: [offer], model: { uri, parameters } };
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
