// SPDX-License-Identifier: Apache-2.0
/** Moving one device's state as planned: read, converted if need be, written; in rounds while the device runs, then the rest. */

import type { MigrationClient } from '../client/index.js';
import { DevstateError } from '../errors.js';
import { BlobConverter, type Converter } from '../formats/index.js';
import type { MigrationEnd } from '../migration/index.js';
import { PRODUCER } from '../version.js';
import type { StatePeer, StatePlan } from './state-plan.js';
import type { StateSink } from './state-sink.js';
import { readState, transferState, writeState } from './state-stream.js';
import { readValuesAsBlob, ValuesWriter } from './state-values.js';
import { unlessAborted } from './waiting.js';
import { UnwrappingSink } from './wrapped-state.js';

/** A transfer, made before the device is asked for its first byte. */
export interface StateTransfer {
  /** Moves what the source has to give now, while it runs. @returns bytes that reached the destination */
  round(signal?: AbortSignal): Promise<number>;
  /** Moves the rest; the source is in STOP_COPY. @returns bytes that reached the destination */
  finish(signal?: AbortSignal): Promise<number>;
}

export function createTransfer(
  plan: StatePlan,
  source: MigrationClient,
  destination: MigrationClient,
): StateTransfer {
  const taken = plan.negotiation?.taken;
  const fromValues = plan.source.interface === 'values';
  const toValues = plan.destination.interface === 'values';
  if (taken === undefined || (taken.way.length === 0 && !fromValues && !toValues)) {
    // The same stream at both ends: nothing of it is looked at here.
    const isOpaque = taken === undefined;
    const move = (signal?: AbortSignal): Promise<number> =>
      transferState(source, destination, signal, isOpaque);
    return { round: move, finish: move };
  }
  const stage = createSink(plan, destination);
  const chunks = (signal?: AbortSignal): AsyncIterable<Uint8Array> => readPeer(plan.source, source, signal);
  const move = async (signal?: AbortSignal): Promise<void> => {
    for await (const chunk of chunks(signal)) await stage.write(chunk, signal);
  };
  return {
    // Values are of one moment: there is nothing to be had while the device runs.
    round: (signal) => stage.count(() => (fromValues ? Promise.resolve() : move(signal))),
    finish: (signal) =>
      stage.count(async () => {
        await move(signal);
        await stage.finish(signal);
      }),
  };
}

/** What takes the source's stream, converts it as planned and gives it to the destination, in RESUMING. */
export function createSink(plan: StatePlan, destination: MigrationEnd): ConvertingSink {
  const taken = plan.negotiation?.taken;
  return new ConvertingSink(taken?.way ?? [], plan.features, innerSink(plan, destination));
}

function innerSink(plan: StatePlan, destination: MigrationEnd): StateSink {
  const { values, interface: how } = plan.destination;
  const taken = plan.negotiation?.taken;
  if (values !== undefined && taken !== undefined) return new ValuesWriter(values, taken.to);
  return how === 'raw' || plan.wrapped === true ? new UnwrappingSink(destination) : streamSink(destination);
}

/**
 * All that a device in STOP_COPY has to give, or what one in PRE_COPY has now, as a stream: a blob, or what a peer without
 * formats has instead. A chunk is valid until the next.
 */
export function readPeer(
  peer: StatePeer,
  device: MigrationEnd,
  signal?: AbortSignal,
): AsyncIterable<Uint8Array> {
  const [offer] = peer.offers;
  if (peer.values === undefined || offer === undefined) return readState(device, signal);
  if (peer.model === undefined) {
    throw new DevstateError(
      'DEVSTATE_E_NOT_MIGRATABLE',
      'the device has values but does not say of which model',
    );
  }
  return readValuesAsBlob(peer.values, peer.model, offer, signal);
}

function streamSink(destination: MigrationEnd): StateSink {
  return {
    write: (bytes, signal) => unlessAborted(writeState(destination, bytes), signal),
    finish: () => Promise.resolve(),
  };
}

/** Converts what passes, as far as the way needs it, and counts what comes out. */
class ConvertingSink implements StateSink {
  readonly #sink: StateSink;
  readonly #converter: BlobConverter | undefined;
  /** What the converter has put out and no one has taken yet. */
  readonly #output: Uint8Array[] = [];
  #bytes = 0;

  constructor(way: readonly Converter[], features: readonly string[], sink: StateSink) {
    this.#sink = sink;
    if (way.length === 0) return;
    this.#converter = new BlobConverter({
      choose: () => way,
      producer: PRODUCER,
      features: () => features,
      write: (bytes) => this.#output.push(new Uint8Array(bytes)),
    });
  }

  async write(chunk: Uint8Array, signal?: AbortSignal): Promise<void> {
    if (this.#converter === undefined) return this.#give(chunk, signal);
    this.#converter.push(chunk);
    await this.#flush(signal);
  }

  async finish(signal?: AbortSignal): Promise<void> {
    this.#converter?.finish();
    await this.#flush(signal);
    await this.#sink.finish(signal);
  }

  /** Runs `work`. @returns the bytes that came out meanwhile */
  async count(work: () => Promise<void>): Promise<number> {
    const before = this.#bytes;
    await work();
    return this.#bytes - before;
  }

  async #flush(signal: AbortSignal | undefined): Promise<void> {
    const bytes = Buffer.concat(this.#output.splice(0));
    if (bytes.length > 0) await this.#give(bytes, signal);
  }

  async #give(bytes: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    this.#bytes += bytes.length;
    await this.#sink.write(bytes, signal);
  }
}
