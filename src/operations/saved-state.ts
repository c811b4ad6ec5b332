// SPDX-License-Identifier: Apache-2.0
/** A saved state on its way to a device: how it gets in, known as soon as its beginning has come, and whether it is whole. */

import { DevstateError } from '../errors.js';
import {
  EnvelopeDecoder,
  type EnvelopeHeader,
  EnvelopeRecord,
  findFormat,
  formatVersionText,
  hasMagic,
  SIGNATURE_LENGTH,
} from '../formats/index.js';
import { noDeviceState, WrongFile } from './files/wrong-file.js';
import { type FormatOptions, planReasons, planState, type StatePeer, type StatePlan } from './state-plan.js';

export interface SavedState {
  /** The next bytes. @throws DEVSTATE_E_ENVELOPE_…, DEVSTATE_E_INCOMPATIBLE */
  push(bytes: Uint8Array): void;
  /** No more come. @throws DEVSTATE_E_ENVELOPE_… when that cannot be all */
  finish(): void;
  /** Undefined until it can be told. */
  readonly plan: StatePlan | undefined;
}

export interface SavedStateOptions extends FormatOptions {
  /** Give the device the bytes as they are, whatever they are: for one that does not say which formats it has. */
  readonly raw?: boolean;
}

/**
 * What does not fit the device `peer` is refused, if that says what fits.
 * @throws DEVSTATE_E_USAGE for `raw` and a device that says which formats it has
 */
export function openSavedState(peer: StatePeer, options: SavedStateOptions): SavedState {
  const { raw = false } = options;
  if (peer.interface === 'opaque') return new (raw ? RawState : ForeignState)(peer, options);
  if (!raw) return new SavedBlob(peer, options);
  throw new DevstateError('DEVSTATE_E_USAGE', 'the device says which formats it has: leave --raw out');
}

class SavedBlob implements SavedState {
  plan: StatePlan | undefined;
  readonly #decoder: EnvelopeDecoder;

  constructor(peer: StatePeer, options: FormatOptions) {
    this.#decoder = new EnvelopeDecoder({
      onHeader: (header) => {
        this.plan = requirePlan(savedPeer(header), peer, options);
      },
    });
  }

  push(bytes: Uint8Array): void {
    this.#decoder.push(bytes);
  }

  finish(): void {
    this.#decoder.finish();
  }
}

/**
 * For a device that does not say what it takes: it is given what such a device has saved, as it is, or as it was before it
 * was wrapped. What is recognised as anything else is refused.
 */
class ForeignState implements SavedState {
  plan: StatePlan | undefined;
  readonly #peer: StatePeer;
  readonly #options: FormatOptions;
  /** The first record of a blob shows whether it wraps a stream or is one. */
  readonly #decoder = new EnvelopeDecoder({
    onHeader: (header) => {
      this.#header = header;
    },
    onRecord: ({ type }) => {
      if (type !== EnvelopeRecord.opaque) throw this.#unwrapped();
      this.plan ??= rawPlan(this.#peer, this.#options, true);
    },
  });
  #header: EnvelopeHeader | undefined;
  /** Undefined once it was looked at. */
  #beginning: Buffer | undefined = Buffer.alloc(0);
  #isBlob = false;

  constructor(peer: StatePeer, options: FormatOptions) {
    this.#peer = peer;
    this.#options = options;
  }

  push(bytes: Uint8Array): void {
    if (this.#beginning === undefined) {
      if (this.#isBlob) this.#decoder.push(bytes);
      return;
    }
    this.#beginning = Buffer.concat([this.#beginning, bytes]);
    if (this.#beginning.length >= SIGNATURE_LENGTH) this.#begin(this.#beginning);
  }

  #begin(beginning: Uint8Array): void {
    this.#beginning = undefined;
    this.#isBlob = hasMagic(beginning);
    if (this.#isBlob) {
      this.#decoder.push(beginning);
      return;
    }
    if (beginning.length === 0)
      throw new WrongFile('DEVSTATE_E_ENVELOPE_TRUNCATED', 'is empty: save or copy the state again');
    const what = noDeviceState(beginning);
    if (what !== undefined) {
      const message = `is ${what}, not a device state: name the file that devstate save has written, or give --raw if the device has saved that`;
      throw new WrongFile('DEVSTATE_E_ENVELOPE_MAGIC', message);
    }
    this.plan = rawPlan(this.#peer, this.#options, false);
  }

  /** A blob that is what a device with formats has saved. */
  #unwrapped(): DevstateError {
    const { format, version } = this.#header!;
    const what = `the state is of format ${findFormat(format)?.name ?? format} ${formatVersionText(version)}`;
    const message = `${what}, and the device does not say which formats it takes: load it into a device that has this format, or give --raw if this device takes it`;
    return new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
  }

  finish(): void {
    const beginning = this.#beginning;
    if (beginning !== undefined) this.#begin(beginning);
    if (!this.#isBlob) return;
    this.#decoder.finish();
    if (this.plan === undefined) throw this.#unwrapped();
  }
}

/** Whatever comes goes to the device as it is. */
class RawState implements SavedState {
  readonly plan: StatePlan;

  constructor(peer: StatePeer, options: FormatOptions) {
    this.plan = rawPlan(peer, options, false);
  }

  push(): void {}

  finish(): void {}
}

/** @throws DEVSTATE_E_INCOMPATIBLE */
function rawPlan(peer: StatePeer, options: FormatOptions, wrapped: boolean): StatePlan {
  const source = { interface: 'opaque', offers: [], model: undefined } as const;
  return { ...requirePlan(source, peer, options), wrapped };
}

/** @throws DEVSTATE_E_INCOMPATIBLE with every reason */
function requirePlan(source: StatePeer, destination: StatePeer, options: FormatOptions): StatePlan {
  const planned = planState(source, destination, options);
  const reasons = planReasons(planned);
  if (reasons.length === 0) return planned.plan;
  const message = `the state does not fit the device: ${reasons.join('; ')}`;
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}

/** A blob, as if a device offered it. */
function savedPeer(header: EnvelopeHeader): StatePeer {
  const { format: uuid, version, features, model: uri, parameters } = header;
  const name = findFormat(uuid)?.name ?? uuid;
  const offer = { uuid, name, version, save: true, load: false, fidelity: 'complete', features } as const;
  return { interface: 'formats', offers: [offer], model: { uri, parameters } };
}
