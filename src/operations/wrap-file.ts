// SPDX-License-Identifier: Apache-2.0
/** Foreign streams as blobs and back: an envelope around bytes that stay as they are. */

import { DevstateError } from '../errors.js';
import {
  EnvelopeDecoder,
  EnvelopeEncoder,
  EnvelopeRecord,
  type FormatVersion,
  newUuid,
  type ParameterValue,
  RecordFlag,
  type Uuid,
} from '../formats/index.js';
import { PRODUCER } from '../version.js';
import type { InputFile, ReadProgress } from './files/input.js';
import type { OutputFile } from './files/output.js';

export interface WrapOptions {
  /** What the bytes are. */
  readonly format: Uuid;
  readonly version: FormatVersion;
  /** URI of the device's model. */
  readonly model: string;
  readonly parameters: { readonly [name: string]: ParameterValue };
  readonly progress?: ReadProgress | undefined;
}

/** @returns bytes of the stream that was wrapped @throws DEVSTATE_E_INPUT, DEVSTATE_E_OUTPUT, DEVSTATE_E_ENVELOPE_METADATA */
export async function wrapFile(input: InputFile, output: OutputFile, options: WrapOptions): Promise<number> {
  const { format, version, model, parameters, progress } = options;
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
  output.write(encoder.header());
  let bytes = 0;
  for await (const chunk of input.chunks(progress)) {
    bytes += chunk.length;
    for (const part of encoder.record(EnvelopeRecord.opaque, 0, chunk)) output.write(part);
    await output.flush();
  }
  output.write(encoder.end());
  return bytes;
}

/**
 * @returns bytes of the stream
 * @throws DEVSTATE_E_INPUT, DEVSTATE_E_OUTPUT, DEVSTATE_E_ENVELOPE_…; DEVSTATE_E_CONVERSION for a blob that wraps nothing
 */
export async function unwrapFile(
  input: InputFile,
  output: OutputFile,
  progress?: ReadProgress,
): Promise<number> {
  let found = false;
  const decoder = new EnvelopeDecoder({
    onRecord: ({ type, flags, payload, sequence }) => {
      if (type === EnvelopeRecord.opaque) {
        found = true;
        output.write(payload);
      } else if ((flags & RecordFlag.optional) === 0)
        throw notWrapped(`record ${sequence} is not part of a stream`);
    },
  });
  for await (const chunk of input.chunks(progress)) {
    decoder.push(chunk);
    await output.flush();
  }
  if (decoder.finish().records > 0 && !found) throw notWrapped('its records are not those of a stream');
  return output.bytes;
}

function notWrapped(why: string): DevstateError {
  return new DevstateError(
    'DEVSTATE_E_CONVERSION',
    `this blob does not wrap a foreign stream (${why}): inspect --extract writes the payloads of its records to files`,
  );
}
