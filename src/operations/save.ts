// SPDX-License-Identifier: Apache-2.0
/** Saves a device's state to a file. The device stops for it, and by default runs on. */

import { DevstateError } from '../errors.js';
import { findFormat, isSameName, isUuid, parseUuid } from '../formats/index.js';
import type { MigrationEnd } from '../migration/index.js';
import { MigrationFlag, MigrationState } from '../wire/index.js';
import type { DeviceSocketOptions } from './device-socket.js';
import { type OutputFile, withOutput } from './files/output.js';
import { type DeviceAddress, openMigrationEnd } from './migration-end.js';
import { askPeer, bestFeature, type StatePeer } from './state-plan.js';
import { readPrecopy } from './state-stream.js';
import { readPeer } from './state-transfer.js';
import { unlessAborted } from './waiting.js';
import { type Wrapping, wrapState } from './wrapped-state.js';

export type SaveOptions = DeviceAddress & SaveSettings;

export interface SaveSettings extends DeviceSocketOptions {
  /** Where to; `-` for stdout. An existing file is replaced only by a complete one. */
  readonly output: string;
  /** Write although something is there that is in use or no saved state. Default: false. */
  readonly force?: boolean;
  /** Told what `force` destroys, a sentence each. */
  readonly warn?: (message: string) => void;
  /** The format, by name or UUID, or `auto` for the device's own choice. Default: `auto`. */
  readonly format?: string;
  /** URI of the model, for a device that does not say what it is: its stream is wrapped, as what `format` names. */
  readonly model?: string;
  /** Compress it, if the device can. */
  readonly compress?: boolean;
  /** Save what can be had while the device still runs, so that it stops for the rest only. If it can, and runs. */
  readonly precopy?: boolean;
  /** What the device does afterwards. */
  readonly afterwards: 'run' | 'stop';
  /** Gives up: the device goes on as it was, and nothing is written. */
  readonly signal?: AbortSignal;
}

export interface SaveResult {
  readonly bytes: number;
  /** Bytes of state that the device gave before it stopped. */
  readonly precopyBytes: number;
  /** Milliseconds for which the device was stopped, if it runs again. */
  readonly stoppedMs: number;
}

/**
 * @throws DEVSTATE_E_CONNECT, DEVSTATE_E_NOT_MIGRATABLE, DEVSTATE_E_REFUSED, DEVSTATE_E_OUTPUT, DEVSTATE_E_CANCELLED; the
 * device then goes on as it was
 */
export async function save(options: SaveOptions): Promise<SaveResult> {
  const { signal } = options;
  const { device, flags } = await openMigrationEnd(options, options);
  try {
    const peer = await askPeer(device);
    const wrapping = wrappingOf(peer, options);
    if (wrapping === undefined) await select(device, peer, options);
    const before = await device.state();
    if (before === MigrationState.RESUMING) {
      const message = 'the device waits for a state (--incoming): it has none of its own to save';
      throw new DevstateError('DEVSTATE_E_NOT_MIGRATABLE', message);
    }
    const canPrecopy = before === MigrationState.RUNNING && (flags & MigrationFlag.PRE_COPY) !== 0;
    const saving = new Saving(peer, device, options.precopy === true && canPrecopy);
    let stoppedMs = 0;
    try {
      // Somebody may have begun to save and died: what is left of that is no whole state.
      if (before === MigrationState.STOP_COPY) await device.setState(MigrationState.STOP);
      const write = async (output: OutputFile): Promise<number> => {
        const chunks = saving.chunks(signal);
        for await (const chunk of wrapping === undefined ? chunks : wrapState(chunks, wrapping)) {
          output.write(chunk);
          await output.flush();
        }
        signal?.throwIfAborted();
        // Before the file is there: a device that cannot run leaves none.
        await device.setState(options.afterwards === 'run' ? MigrationState.RUNNING : MigrationState.STOP);
        stoppedMs = performance.now() - saving.stopped;
        return output.bytes;
      };
      const bytes = await withOutput(options.output, write, {
        written: wrapping !== undefined || hasEnvelope(peer) ? 'blob' : 'device-stream',
        force: options.force,
        warn: options.warn,
      });
      return { bytes, precopyBytes: saving.precopyBytes, stoppedMs };
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

/** Whether what the device saves is a blob of itself. */
function hasEnvelope({ interface: how }: StatePeer): boolean {
  return how === 'formats' || how === 'values';
}

/** One device's state as a stream, and what it took. */
class Saving {
  precopyBytes = 0;
  /** When the device stopped, as `performance.now()`. */
  stopped = Number.NaN;
  readonly #peer: StatePeer;
  readonly #device: MigrationEnd;
  readonly #precopy: boolean;

  constructor(peer: StatePeer, device: MigrationEnd, precopy: boolean) {
    this.#peer = peer;
    this.#device = device;
    // Values are of one moment: there is nothing to be had while the device runs.
    this.#precopy = precopy && peer.values === undefined;
  }

  /** A chunk is valid until the next. */
  async *chunks(signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
    if (this.#precopy) {
      await unlessAborted(this.#device.setState(MigrationState.PRE_COPY), signal);
      for await (const chunk of readPrecopy(this.#device, signal)) {
        this.precopyBytes += chunk.length;
        yield chunk;
      }
    }
    this.stopped = performance.now();
    await unlessAborted(this.#device.setState(MigrationState.STOP_COPY), signal);
    yield* readPeer(this.#peer, this.#device, signal);
  }
}

/** How a stream without an envelope gets one; undefined for one that has its own, or is to have none. */
function wrappingOf(peer: StatePeer, { model, format }: SaveSettings): Wrapping | undefined {
  if (model !== undefined) return requireWrapping(peer, model, format);
  const [offer] = peer.offers;
  if (peer.interface !== 'raw' || offer === undefined || peer.model === undefined) return undefined;
  if (format !== undefined && format !== 'auto' && !isSameName(offer, format)) throw notSaved(format, peer);
  const { uri, parameters } = peer.model;
  return { format: offer.uuid, version: offer.version, model: uri, parameters };
}

/** @throws DEVSTATE_E_USAGE for a device that says what it is, or without a format */
function requireWrapping(peer: StatePeer, model: string, format = 'auto'): Wrapping {
  if (peer.interface !== 'opaque')
    throw new DevstateError('DEVSTATE_E_USAGE', 'the device says of which model it is: leave --model out');
  const uuid = isUuid(format) ? parseUuid(format) : findFormat(format)?.uuid;
  if (uuid !== undefined) return { format: uuid, version: { major: 1, minor: 0 }, model, parameters: {} };
  const message = `--model needs --format, a UUID or a registered name: what the stream is (not ${format})`;
  throw new DevstateError('DEVSTATE_E_USAGE', message);
}

/** @throws DEVSTATE_E_INCOMPATIBLE when the device does not save that format */
async function select(
  device: MigrationEnd,
  peer: StatePeer,
  { format = 'auto', compress = false }: SaveSettings,
): Promise<void> {
  const { offers, interface: how } = peer;
  const offer = format === 'auto' ? offers[0] : offers.find((one) => one.save && isSameName(one, format));
  if (offer === undefined && format !== 'auto') throw notSaved(format, peer);
  // Selected even if it is the device's first: one that copies another make has, for who selects nothing, no envelope.
  if (how !== 'formats' || offer === undefined) return;
  await device.selectFormat(offer, 'save', compress ? bestFeature(offer.features) : []);
}

function notSaved(format: string, { offers }: StatePeer): DevstateError {
  const known =
    offers.length === 0 ? 'it does not say what it saves' : offers.map(({ name }) => name).join(', ');
  const message = `the device does not save ${format} (${known}); save it as it is and use devstate convert`;
  return new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}
