// SPDX-License-Identifier: Apache-2.0
/**
 * The stream of a device that does not say what it is, as a blob that does: each chunk that the device gave is an opaque
 * record, and each opaque record is given to a device as one chunk. A device of migration v1 may need it like that.
 */

import { DevstateError } from '../errors.js';
import {
  EnvelopeDecoder,
  EnvelopeEncoder,
  EnvelopeRecord,
  type FormatVersion,
  newUuid,
  type ParameterValue,
  RECORD_LENGTH_MAX,
  RecordFlag,
  type Uuid,
} from '../formats/index.js';
import type { MigrationEnd } from '../migration/index.js';
import { PRODUCER } from '../version.js';
import type { StateSink } from './state-sink.js';
import { writeState } from './state-stream.js';
import { unlessAborted } from './waiting.js';

/** What is known of a stream that does not say it itself. */
export interface Wrapping {
  readonly format: Uuid;
  readonly version: FormatVersion;
  /** URI of the model. */
  readonly model: string;
  readonly parameters: Readonly<Record<string, ParameterValue>>;
}

/** The blob, in pieces that are valid until the next. @throws DEVSTATE_E_INCOMPATIBLE for a chunk that no record holds */
export async function* wrapState(
  chunks: AsyncIterable<Uint8Array>,
  { format, version, model, parameters }: Wrapping,
): AsyncGenerator<Uint8Array> {
  const encoder = new EnvelopeEncoder({
    format,
    version,
    model,
    parameters: { ...parameters },
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
  readonly #device: MigrationEnd;
  readonly #chunks: Uint8Array[] = [];
  readonly #decoder = new EnvelopeDecoder({
    onRecord: ({ type, flags, payload }) => {
      if (type === EnvelopeRecord.opaque) this.#chunks.push(payload.slice());
      else if ((flags & RecordFlag.optional) === 0) {
        const message = `record type ${type} is no part of the stream that the blob wraps`;
        throw new DevstateError('DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN', message);
      }
    },
  });

  constructor(device: MigrationEnd) {
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
