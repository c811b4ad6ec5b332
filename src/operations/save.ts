// SPDX-License-Identifier: Apache-2.0
/** Saves a device's state to a file. The device stops for it, and by default runs on. */

import { MigrationClient } from '../client/index.js';
import { DevstateError } from '../errors.js';
import { findFormat, isSameName, isUuid, parseUuid } from '../formats/index.js';
import type { MigrationEnd } from '../migration/index.js';
import { MIN_IMAGE_BYTE, MigrationFlag, MigrationState } from '../wire/index.js';
import type { DeviceSocketOptions } from './device-socket.js';
import { type OutputFile, withOutput } from './files/output.js';
import type { OwnerOptions } from './identity/index.js';
import { type DeviceAddress, openMigrationEnd, requireOwnedEnd } from './migration-end.js';
import { askPeer, bestFeature, type StatePeer } from './state-plan.js';
import { readPrecopy } from './state-stream.js';
import { readPeer } from './state-transfer.js';
import { unlessAborted } from './waiting.js';
import { type Wrapping, wrapState } from './wrapped-state.js';

/** How often a saving begins that resets of the device end. */
const MAX_ATTEMPTS = 10;

export type SaveOptions = DeviceAddress & SaveSettings;

export interface SaveSettings extends DeviceSocketOptions, OwnerOptions {
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
  /** Gives up: the device continues as it was, and nothing is written. */
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
 * @throws DEVSTATE_E_CONNECT, DEVSTATE_E_NOT_MIGRATABLE, DEVSTATE_E_REFUSED, DEVSTATE_E_OUTPUT, DEVSTATE_E_CANCELLED,
 * DEVSTATE_E_INCOMPATIBLE when a VMM has the device and it is not proven that it is `owner`'s, DEVSTATE_E_VM_CHANGED when
 * the device is reset again and again; the device then runs as before
 */
export async function save(options: SaveOptions): Promise<SaveResult> {
  const { signal } = options;
  const end = await openMigrationEnd(options, options);
  const { device, flags } = end;
  try {
    await requireOwnedEnd(end, options, 'nothing was saved', signal);
    const peer = await askPeer(device);
    const wrapping = wrappingOf(peer, options);
    if (wrapping === undefined) await select(device, peer, options);
    const before = await device.state();
    if (
      before === MigrationState.RESUMING ||
      (before === MigrationState.RUNNING && (await isEmpty(device)))
    ) {
      const message = 'the device waits for a state (--incoming): it has none of its own to save';
      throw new DevstateError('DEVSTATE_E_NOT_MIGRATABLE', message);
    }
    const canPrecopy = before === MigrationState.RUNNING && (flags & MigrationFlag.PRE_COPY) !== 0;
    const saving = new Saving(peer, device, options.precopy === true && canPrecopy);
    let stoppedMs = 0;
    let isGiven = false;
    try {
      // Somebody may have begun to save and died: what is left of that is no whole state.
      if (before === MigrationState.STOP_COPY) await device.setState(MigrationState.STOP);
      const write = async (output: OutputFile): Promise<number> => {
        const chunks = saving.chunks(signal);
        for await (const chunk of wrapping === undefined ? chunks : wrapState(chunks, wrapping)) {
          output.write(chunk);
          isGiven = !output.canDiscard;
          await output.flush();
        }
        signal?.throwIfAborted();
        // Before the file is there: a device that cannot run leaves none.
        await device.setState(options.afterwards === 'run' ? MigrationState.RUNNING : MigrationState.STOP);
        stoppedMs = performance.now() - saving.stopped;
        return output.bytes;
      };
      const attempt = (): Promise<number> =>
        withOutput(options.output, write, {
          written: wrapping !== undefined || hasEnvelope(peer) ? 'blob' : 'device-stream',
          force: options.force,
          warn: options.warn,
          signal,
        });
      const bytes = await unlessReset(attempt, () => isGiven);
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

/** Whether a device is a migration's destination still: the image is its source's until it has loaded a state. */
async function isEmpty(device: MigrationEnd): Promise<boolean> {
  if (!(device instanceof MigrationClient)) return false;
  const images = (await device.images(MIN_IMAGE_BYTE)) ?? [];
  return images.some(({ locked }) => !locked);
}

/** The guest, or another client of the VMM, has reset the device: what was saved of it has no end. */
class DeviceReset extends Error {}

/** Begins anew where a reset of the device has ended it. @param isGiven whether bytes have left that cannot be taken back */
async function unlessReset<T>(attempt: () => Promise<T>, isGiven: () => boolean): Promise<T> {
  for (let left = MAX_ATTEMPTS; ; left--) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof DeviceReset)) throw error;
      if (!isGiven() && left > 1) continue;
      const what = 'the device was reset, by its guest or another client of its VMM, while it was saved';
      const next = isGiven()
        ? 'the output has a part of the old state already; save to a regular file, which can begin anew'
        : `${MAX_ATTEMPTS} attempts were ended like that; save again when the guest does not reset it`;
      throw new DevstateError('DEVSTATE_E_VM_CHANGED', `${what}: ${next}`, { cause: error.cause });
    }
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

  /**
   * A chunk is valid until the next. May be called again, for another attempt.
   * @throws DeviceReset when the device was reset meanwhile
   */
  async *chunks(signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
    this.precopyBytes = 0;
    try {
      yield* this.#read(signal);
    } catch (error) {
      if (error instanceof DeviceReset || signal?.aborted === true) throw error;
      const state = await this.#device.state().catch(() => undefined);
      throw state === MigrationState.RUNNING ? new DeviceReset('', { cause: error }) : error;
    }
  }

  async *#read(signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
    const device = this.#device;
    const resets = await device.resets();
    if (this.#precopy) {
      await unlessAborted(device.setState(MigrationState.PRE_COPY), signal);
      for await (const chunk of readPrecopy(device, signal)) {
        this.precopyBytes += chunk.length;
        yield chunk;
      }
      await this.#require(MigrationState.PRE_COPY);
    }
    this.stopped = performance.now();
    await unlessAborted(device.setState(MigrationState.STOP_COPY), signal);
    // A reset right before that: the new stream does not continue the old one.
    if ((await device.resets()) !== resets) throw new DeviceReset();
    yield* readPeer(this.#peer, device, signal);
    // Values are asked for one by one: they are of one moment only if the device has stood all the time.
    await this.#require(MigrationState.STOP_COPY);
  }

  async #require(state: MigrationState): Promise<void> {
    if ((await this.#device.state()) !== state) throw new DeviceReset();
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
