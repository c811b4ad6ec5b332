// SPDX-License-Identifier: Apache-2.0
/**
 * The stream of a device that does not say what it is, as a blob that does: each chunk that the device gave is an opaque
 * record, and each opaque record is given to a device as one chunk. A device of migration v1 may need it like that.
 */

import type { MigrationClient } from '../client/index.js';
import { DevstateError } from '../errors.js';
import {
  EnvelopeDecoder,
  EnvelopeEncoder,
  EnvelopeRecord,
  newUuid,
  RECORD_LENGTH_MAX,
  type Uuid,
} from '../formats/index.js';
import { PRODUCER } from '../version.js';
import { writeState } from './state-stream.js';
import type { StateSink } from './state-transfer.js';
import { unlessAborted } from './waiting.js';

/** What an operator says of a device that does not. */
export interface Wrapping {
  readonly format: Uuid;
  /** URI of the model. */
  readonly model: string;
}

/** The blob, in pieces that are valid until the next. @throws DEVSTATE_E_INCOMPATIBLE for a chunk that no record holds */
export async function* wrapState(
  chunks: AsyncIterable<Uint8Array>,
  { format, model }: Wrapping,
): AsyncGenerator<Uint8Array> {
  const encoder = new EnvelopeEncoder({
    format,
    version: { major: 1, minor: 0 },
    model,
    parameters: {},
    producer: PRODUCER,
    stream: newUuid(),
    features: [],
    other: {},
  });
  yield encoder.header();
  for await (const chunk of chunks) {
    if (chunk.length > RECORD_LENGTH_MAX) {
      const message = `the device gives a chunk of ${chunk.length} bytes, and a record holds ${RECORD_LENGTH_MAX}: save it without --model`;
      throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
    }
    yield* encoder.record(EnvelopeRecord.opaque, 0, chunk);
  }
  yield encoder.end();
}

/** Gives a device what such a blob holds. What it is given has been checked: see `SavedState`. */
export class UnwrappingSink implements StateSink {
  readonly #device: MigrationClient;
  readonly #chunks: Uint8Array[] = [];
  readonly #decoder = new EnvelopeDecoder({
    onRecord: ({ type, payload }) => {
      if (type === EnvelopeRecord.opaque) this.#chunks.push(payload.slice());
    },
  });

  constructor(device: MigrationClient) {
    this.#device = device;
  }

  async write(bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
    this.#decoder.push(bytes);
    for (const chunk of this.#chunks.splice(0))
      await unlessAborted(writeState(this.#device, chunk, true), signal);
  }

  async finish(): Promise<void> {
    this.#decoder.finish();
  }
}
