// SPDX-License-Identifier: Apache-2.0
/** What moves a device's state, one thing at a time: a saving or a loading, as a stream of a format or value by value. */

import { setImmediate } from 'node:timers/promises';
import type { Device, StateFormat, StateLoader, StateRecord } from '../device/index.js';
import { newUuid, uuidToBytes } from '../formats/index.js';
import {
  LoadSession,
  RawLoadSession,
  RawSaveSession,
  type RecordSource,
  SaveSession,
} from '../migration/index.js';
import { Errno, MAX_STATE_VALUES, RequestError, type StateValue, type ValueNames } from '../wire/index.js';
import { type FormatChoice, formatFor, type StateOffer } from './format-choice.js';

/** All values of one state: they are held until all have come. */
const MAX_VALUES_LENGTH = 64 * 1024 * 1024;
/** Largest state, in bytes, that a destination loads from itself to check that it can. */
const MAX_SELF_CHECK = 1024 * 1024;

/** What is saved: the device, or what its format imagines (`StateFormat.practice`). */
export type SaveSource = 'device' | 'practice';

export class StateSessions {
  readonly #device: Device;
  readonly #offer: StateOffer;
  #save: SaveSession | RawSaveSession | undefined;
  #load: LoadSession | RawLoadSession | undefined;
  /** Values that were captured for the reader, or collected from the writer. */
  #saved: ReadonlyMap<string, StateValue> | undefined;
  #loaded: Map<string, StateValue> | undefined;
  /** Bytes of their names and values, about. */
  #loadedBytes = 0;

  constructor(device: Device, offer: StateOffer) {
    this.#device = device;
    this.#offer = offer;
  }

  /** Begins to save: in pre-copy, or at the last round if `finishSave` follows at once. */
  startSave({ save }: FormatChoice, source: SaveSource = 'device'): void {
    if (save === undefined && this.#offer.raw !== undefined) {
      this.#save = new RawSaveSession(this.#offer.raw);
      return;
    }
    const format = save?.format ?? this.#offer.formats[0];
    if (format === undefined) {
      if (this.#offer.values !== undefined) return;
      throw new RequestError(Errno.ENOTSUP, 'the device has no state format');
    }
    const { model, producer } = this.#device;
    this.#save = new SaveSession(source === 'practice' ? practiceOf(format) : format, {
      format: format.uuid,
      version: format.version,
      model: model.uri,
      parameters: { ...model.parameters },
      producer,
      stream: newUuid(),
      features: [...(save?.features ?? [])],
      other: {},
    });
  }

  /** The device is quiesced, if it is the device that is saved: what follows is the last round. */
  async finishSave(source: SaveSource = 'device'): Promise<void> {
    if (source === 'device') this.#saved = this.#offer.values?.capture();
    await this.#save?.finish();
  }

  startLoad(choice: FormatChoice): void {
    const { raw } = this.#offer;
    this.#load =
      choice.load === undefined && raw !== undefined
        ? new RawLoadSession(raw)
        : new LoadSession((header) => formatFor(this.#device.model, this.#offer, choice, header));
    if (this.#offer.values !== undefined) this.#loaded = new Map();
    this.#loadedBytes = 0;
  }

  /** The device becomes what was loaded. */
  async commitLoad(): Promise<void> {
    const [load, values] = [this.#load, this.#loaded];
    this.#load = undefined;
    this.#loaded = undefined;
    if (values !== undefined && values.size > 0) this.#offer.values?.restore(values);
    else await load?.commit();
  }

  /** Gives up what is under way. */
  async end(): Promise<void> {
    const save = this.#save;
    this.#save = undefined;
    this.#load = undefined;
    this.#saved = undefined;
    this.#loaded = undefined;
    await save?.close();
  }

  get underWay(): boolean {
    return this.#save !== undefined || this.#load !== undefined || this.#saved !== undefined;
  }

  /** About how many bytes are still to come if the device stopped now. */
  get pending(): number {
    const { raw, formats } = this.#offer;
    return this.#save?.pending ?? raw?.estimate ?? formats[0]?.estimate() ?? 0;
  }

  /** The next bytes of the stream; undefined when nothing is saved. */
  async read(size: number): Promise<Uint8Array[] | undefined> {
    const save = this.#save;
    // A device without a format has an empty stream.
    if (save === undefined) return this.#offer.formats.length === 0 ? [] : undefined;
    return save.read(size);
  }

  /** Whether more will come than has been read. */
  get unread(): boolean {
    return this.#save !== undefined && !this.#save.ended;
  }

  /** Encodes ahead, see `SaveSession`. */
  async prepare(size: number): Promise<void> {
    await this.#save?.prepare(size);
  }

  /** Undefined when nothing is loaded. A promise when it takes longer: `bytes` must not change until it settles. */
  write(bytes: Uint8Array): true | Promise<true> | undefined {
    const load = this.#load;
    if (load === undefined) return undefined;
    const taken = load.push(bytes);
    return taken instanceof Promise ? taken.then(() => true as const) : true;
  }

  /** The format that names the values, and, where there is a state to be read, their names. */
  valueNames(): ValueNames {
    const { values } = this.#offer;
    if (values === undefined) throw notSaved();
    const { major, minor } = values.version;
    return { uuid: uuidToBytes(values.uuid), major, minor, names: [...(this.#saved?.keys() ?? [])] };
  }

  value(name: string): StateValue {
    if (this.#saved === undefined) throw notSaved();
    const value = this.#saved.get(name);
    if (value === undefined)
      throw new RequestError(Errno.ENOENT, `the device has no value ${JSON.stringify(name)}`);
    return value;
  }

  setValue(name: string, value: StateValue): void {
    if (this.#loaded === undefined) throw new RequestError(Errno.EINVAL, 'values are set in RESUMING');
    if (this.#loaded.size >= MAX_STATE_VALUES) throw new RequestError(Errno.E2BIG, 'too many values');
    this.#loadedBytes += name.length + (typeof value === 'object' ? value.length : String(value).length);
    if (this.#loadedBytes > MAX_VALUES_LENGTH) {
      throw new RequestError(Errno.E2BIG, `more than ${MAX_VALUES_LENGTH} bytes of values`);
    }
    this.#loaded.set(name, value);
  }

  /**
   * A destination loads its own state before it takes another's, and an imagined one if there is one: what it cannot do
   * shows while the source's VM runs, and the code has been compiled when the guest waits for it. Left out where the state
   * is large, or has no format. First runs of code are slow: others have a turn between the steps.
   */
  async checkSelf({ load }: FormatChoice): Promise<void> {
    const { formats, values, raw } = this.#offer;
    const format = load ?? (raw === undefined ? formats[0] : undefined);
    if (format === undefined) values?.restore(values.capture());
    if (format === undefined || format.estimate() > MAX_SELF_CHECK) return;
    format.begin?.();
    const imagined = format.practice && (await loadedInTurns(format, format.practice()));
    // From here on without turns: what is saved must still be the device when it is loaded.
    const own: StateRecord[] = [];
    for await (const record of format.save('final')) own.push(record);
    const loader = format.load(format.version);
    for (const record of own) loader.record(record);
    await imagined?.commit();
    // Last its own, which it has if nothing comes.
    await loader.commit();
  }
}

/** What has taken the records and waits for the commit. */
async function loadedInTurns(
  format: StateFormat,
  records: Iterable<StateRecord> | AsyncIterable<StateRecord>,
): Promise<StateLoader> {
  const loader = format.load(format.version);
  for await (const record of records) {
    await setImmediate();
    loader.record(record);
  }
  await setImmediate();
  return loader;
}

/** One record at a time: it is practised while a guest has other things to be served. */
function practiceOf(format: StateFormat): RecordSource {
  return {
    async *save() {
      for await (const record of format.practice?.() ?? []) {
        await setImmediate();
        yield record;
      }
    },
    estimate: () => 0,
  };
}

function notSaved(): RequestError {
  return new RequestError(Errno.EINVAL, 'values are read in STOP_COPY');
}
