// SPDX-License-Identifier: Apache-2.0
/** The state of a device that gives and takes it value by value, as a stream of the format that its values are named after. */

import type { MigrationClient } from '../client/index.js';
import { valueAdapters } from '../devices/catalogue.js';
import { DevstateError } from '../errors.js';
import {
  type DeviceModel,
  EnvelopeDecoder,
  EnvelopeEncoder,
  FORMAT_RECORD_TYPES,
  type FormatOffer,
  type FormatRecord,
  newUuid,
  RecordFlag,
  type Uuid,
  type ValueAdapter,
} from '../formats/index.js';
import { PRODUCER } from '../version.js';
import type { StateValue } from '../wire/index.js';
import { unlessAborted } from './waiting.js';

/** Values asked for, or given, before the first of them is answered. */
const AT_ONCE = 64;

/** The state of a device in STOP_COPY as a blob, in pieces. */
export async function* readValuesAsBlob(
  device: MigrationClient,
  model: DeviceModel,
  { uuid, version }: Pick<FormatOffer, 'uuid' | 'version'>,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const { names } = await unlessAborted(device.valueNames(), signal);
  const values = new Map<string, StateValue>();
  await inBatches(names, async (name) => values.set(name, await unlessAborted(device.value(name), signal)));
  const encoder = new EnvelopeEncoder({
    format: uuid,
    version,
    model: model.uri,
    parameters: { ...model.parameters },
    producer: PRODUCER,
    stream: newUuid(),
    features: [],
    other: {},
  });
  // In the device's order, whichever was answered first.
  const records = adapterFor(uuid).toRecords(new Map(names.map((name) => [name, values.get(name)!])));
  yield encoder.header();
  for (const { type, optional, formatFlags = 0, payload } of records) {
    yield* encoder.record(type, ((optional ? RecordFlag.optional : 0) | formatFlags) >>> 0, payload);
  }
  yield encoder.end();
}

/** Takes a blob, and gives what is in it to a device in RESUMING, value by value. */
export class ValuesWriter {
  readonly #device: MigrationClient;
  readonly #adapter: ValueAdapter;
  readonly #records: FormatRecord[] = [];
  readonly #decoder: EnvelopeDecoder;

  constructor(device: MigrationClient, format: Uuid) {
    this.#device = device;
    this.#adapter = adapterFor(format);
    this.#decoder = new EnvelopeDecoder({
      onRecord: ({ type, flags, payload }) => {
        if (type < FORMAT_RECORD_TYPES) return;
        const optional = (flags & RecordFlag.optional) !== 0;
        this.#records.push({ type, optional, payload: payload.slice() });
      },
    });
  }

  async write(bytes: Uint8Array): Promise<void> {
    this.#decoder.push(bytes);
  }

  async finish(signal?: AbortSignal): Promise<void> {
    this.#decoder.finish();
    await inBatches([...this.#adapter.toValues(this.#records)], ([name, value]) =>
      unlessAborted(this.#device.setValue(name, value), signal),
    );
  }
}

function adapterFor(format: Uuid): ValueAdapter {
  const adapter = valueAdapters.find(({ uuid }) => uuid === format);
  if (adapter !== undefined) return adapter;
  throw new DevstateError(
    'DEVSTATE_E_FORMAT_UNKNOWN',
    `the device gives its state as values of format ${format}, which this devstate cannot put together: update devstate`,
  );
}

async function inBatches<T>(items: readonly T[], work: (item: T) => Promise<unknown>): Promise<void> {
  for (let at = 0; at < items.length; at += AT_ONCE)
    await Promise.all(items.slice(at, at + AT_ONCE).map(work));
}
