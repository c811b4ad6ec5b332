// SPDX-License-Identifier: Apache-2.0
/** A saved state on its way to a device: how it gets in, known as soon as its beginning has come, and whether it is whole. */

import { DevstateError } from '../errors.js';
import {
  EnvelopeDecoder,
  type EnvelopeHeader,
  EnvelopeRecord,
  findFormat,
  hasMagic,
} from '../formats/index.js';
import { type FormatOptions, planReasons, planState, type StatePeer, type StatePlan } from './state-plan.js';

/** Bytes that show whether this is a blob: up to the end of its magic. */
const BEGINNING_LENGTH = 24;

export interface SavedState {
  /** The next bytes. @throws DEVSTATE_E_ENVELOPE_…, DEVSTATE_E_INCOMPATIBLE */
  push(bytes: Uint8Array): void;
  /** No more come. @throws DEVSTATE_E_ENVELOPE_… when that cannot be all */
  finish(): void;
  /** Undefined until it can be told. */
  readonly plan: StatePlan | undefined;
}

/** What does not fit the device `peer` is refused, if that says what fits. */
export function openSavedState(peer: StatePeer, options: FormatOptions): SavedState {
  return peer.interface === 'opaque' ? new ForeignState(peer, options) : new SavedBlob(peer, options);
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
 * For a device that does not say what it takes: it is given everything as it is, or as it was before it was wrapped. What
 * is a blob must be whole, though.
 */
class ForeignState implements SavedState {
  plan: StatePlan | undefined;
  readonly #peer: StatePeer;
  readonly #options: FormatOptions;
  /** The first record of a blob shows whether it wraps a stream or is one. */
  readonly #decoder = new EnvelopeDecoder({
    onRecord: ({ type }) => {
      this.plan ??= this.#newPlan(type === EnvelopeRecord.opaque);
    },
  });
  #beginning: Uint8Array | undefined = new Uint8Array(0);
  #isBlob = true;

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
    if (this.#beginning.length >= BEGINNING_LENGTH) this.#begin(this.#beginning);
  }

  #begin(beginning: Uint8Array): void {
    this.#beginning = undefined;
    this.#isBlob = hasMagic(beginning);
    if (this.#isBlob) this.#decoder.push(beginning);
    else this.plan = this.#newPlan(false);
  }

  #newPlan(wrapped: boolean): StatePlan {
    const source = { interface: 'opaque', offers: [], model: undefined } as const;
    return { ...requirePlan(source, this.#peer, this.#options), wrapped };
  }

  finish(): void {
    const beginning = this.#beginning;
    if (beginning !== undefined && beginning.length > 0) this.#begin(beginning);
    if (!this.#isBlob) return;
    this.#decoder.finish();
    this.plan ??= this.#newPlan(false);
  }
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
