// SPDX-License-Identifier: Apache-2.0
/** The state of a device that gives and takes it value by value, as a stream of the format that its values are named after. */

import { valueAdapters } from '../devices/catalogue.js';
import { DevstateError } from '../errors.js';
import {
  type DeviceModel,
  EnvelopeDecoder,
  EnvelopeEncoder,
  type EnvelopeHeader,
  FORMAT_RECORD_TYPES,
  type FormatOffer,
  type FormatRecord,
  formatVersionText,
  newUuid,
  RecordFlag,
  type ValueAdapter,
} from '../formats/index.js';
import type { ValueAccess } from '../migration/index.js';
import { PRODUCER } from '../version.js';
import type { StateValue } from '../wire/index.js';
import { unlessAborted } from './waiting.js';

/** Values asked for, or given, before the first of them is answered. */
const AT_ONCE = 64;

/** The format that the values are named after. */
type ValueFormat = Pick<FormatOffer, 'uuid' | 'version'>;

/** The state of a device in STOP_COPY as a blob, in pieces. */
export async function* readValuesAsBlob(
  device: ValueAccess,
  model: DeviceModel,
  { uuid, version }: ValueFormat,
  signal?: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const { names } = await unlessAborted(device.valueNames(), signal);
  const values = new Map<string, StateValue>();
  await inBatches(names, async (name) => values.set(name, await device.value(name)), signal);
  const adapter = adapterFor({ uuid, version });
  const encoder = new EnvelopeEncoder({
    format: uuid,
    // The records are the adapter's, whichever minor version the device names its values after.
    version: adapter.version,
    model: model.uri,
    parameters: { ...model.parameters },
    producer: PRODUCER,
    stream: newUuid(),
    features: [],
    other: {},
  });
  // In the device's order, whichever was answered first.
  const records = adapter.toRecords(new Map(names.map((name) => [name, values.get(name)!])));
  yield encoder.header();
  for (const { type, optional, formatFlags = 0, payload } of records) {
    yield* encoder.record(type, ((optional ? RecordFlag.optional : 0) | formatFlags) >>> 0, payload);
  }
  yield encoder.end();
}

/** Takes a blob, and gives what is in it to a device in RESUMING, value by value. */
export class ValuesWriter {
  readonly #device: ValueAccess;
  readonly #adapter: ValueAdapter;
  readonly #records: FormatRecord[] = [];
  readonly #decoder: EnvelopeDecoder;

  constructor(device: ValueAccess, format: ValueFormat) {
    this.#device = device;
    this.#adapter = adapterFor(format);
    this.#decoder = new EnvelopeDecoder({
      onHeader: (header) => requireFormat(header, format),
      onRecord: ({ type, flags, payload }) => {
        const optional = (flags & RecordFlag.optional) !== 0;
        if (type < FORMAT_RECORD_TYPES) {
          if (optional) return;
          const message = `record type ${type} of the envelope cannot be given value by value`;
          throw new DevstateError('DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN', message);
        }
        this.#records.push({ type, optional, payload: new Uint8Array(payload) });
      },
    });
  }

  async write(bytes: Uint8Array): Promise<void> {
    this.#decoder.push(bytes);
  }

  async finish(signal?: AbortSignal): Promise<void> {
    this.#decoder.finish();
    const values = [...this.#adapter.toValues(this.#records)];
    await inBatches(values, ([name, value]) => this.#device.setValue(name, value), signal);
  }
}

/** What was agreed on may not be what comes. @throws DEVSTATE_E_FORMAT_VERSION */
function requireFormat(header: EnvelopeHeader, { uuid, version }: ValueFormat): void {
  if (header.format === uuid && header.version.major === version.major) return;
  const is = `format ${header.format} ${formatVersionText(header.version)}`;
  const message = `the state is of ${is}, the device takes values of ${uuid} ${formatVersionText(version)}`;
  throw new DevstateError('DEVSTATE_E_FORMAT_VERSION', message);
}

function adapterFor({ uuid, version }: ValueFormat): ValueAdapter {
  const adapter = valueAdapters.find((one) => one.uuid === uuid && one.version.major === version.major);
  if (adapter !== undefined) return adapter;
  throw new DevstateError(
    'DEVSTATE_E_FORMAT_UNKNOWN',
    `the device gives its state as values of format ${uuid} ${formatVersionText(version)}, which this devstate cannot put together: update devstate`,
  );
}

async function inBatches<T>(
  items: readonly T[],
  work: (item: T) => Promise<unknown>,
  signal?: AbortSignal,
): Promise<void> {
  for (let at = 0; at < items.length; at += AT_ONCE) {
    const batch = Promise.all(items.slice(at, at + AT_ONCE).map(work));
    await unlessAborted(batch, signal);
  }
}
