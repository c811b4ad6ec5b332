// SPDX-License-Identifier: Apache-2.0
/**
 * Says what a blob holds without loading it: one stable JSON value, gathered from a stream with bounded memory.
 * Nothing is guessed: what is not known is reported as unknown, with its length and first bytes.
 */
import { asDevstateError } from '../../errors.js';
import type { Crc32c } from '../envelope/crc32c.js';
import { type DecodedRecord, EnvelopeDecoder } from '../envelope/decoder.js';
import { EnvelopeError } from '../envelope/envelope-error.js';
import type { EnvelopeHeader, FormatVersion } from '../envelope/header.js';
import { DIGEST_ALGORITHM, EnvelopeRecord, RecordFlag } from '../envelope/layout.js';
import { isMetadataMap, type MetadataValue } from '../envelope/msgpack.js';
import type { FieldMap, FieldValue } from '../fields.js';
import type { ParameterValue } from '../model.js';
import { findFormat, formatVersionText, type RegisteredFormat } from '../registry.js';
import type { Uuid } from '../uuid.js';

/** How a format explains its records to people. */
export interface FormatDescription {
  uuid: Uuid;
  /** The name of a record type; undefined if the format has no such type. */
  recordName(type: number): string | undefined;
  /** The fields of a payload; undefined if it is opaque. May throw on a payload that is not sound. */
  describe?(type: number, payload: Uint8Array, version: FormatVersion): FieldMap | undefined;
}

/** One record. */
export interface RecordInspection {
  sequence: number;
  type: number;
  /** Name of the type; null if nobody here knows it. */
  name: string | null;
  flags: number;
  optional: boolean;
  /** Payload length, in bytes. */
  length: number;
  /** Offset of the record's header in the blob, in bytes. */
  offset: number;
  /** First bytes of the payload of a record without a name, hexadecimal; else null. */
  first: string | null;
}

/** Records of one type that were too many to be listed. */
export interface OmittedRecords {
  /** null: of further types, too many to be told apart. */
  type: number | null;
  name: string | null;
  count: number;
  payloadBytes: number;
}

/** The fields of one record. */
export interface RecordFields {
  /** Sequence number of the record. */
  record: number;
  name: string | null;
  values: FieldMap;
}

/** Why a blob is not whole and sound, and where. */
export interface InspectionError {
  code: string;
  message: string;
  offset: number | null;
  record: number | null;
}

/** A blob with an envelope. With `error`, everything before its offset is sound and shown. */
export interface EnvelopeInspection {
  kind: 'envelope';
  /** Length of the input, in bytes. */
  size: number;
  format: { uuid: Uuid; name: string | null; kind: RegisteredFormat['kind'] | null; version: string };
  model: string;
  parameters: { [name: string]: ParameterValue };
  producer: { name: string; version: string };
  stream: Uuid;
  features: string[];
  /** Metadata of names that this version gives no meaning. */
  other: FieldMap;
  records: RecordInspection[];
  omitted: OmittedRecords[];
  totals: { records: number; payloadBytes: number };
  /** `ok`: the end record was reached and everything in it is right. */
  digest: { algorithm: string; ok: boolean; value: string | null };
  fields: RecordFields[];
  /** Records whose fields were left out because there were too many. */
  fieldsOmitted: number;
  error: InspectionError | null;
}

/** Bytes that are no envelope, or one whose header is damaged; `error` says which. */
export interface UnknownInspection {
  kind: 'unknown';
  size: number;
  /** First bytes, hexadecimal. */
  first: string;
  error: InspectionError;
}

export type Inspection = EnvelopeInspection | UnknownInspection;

export interface InspectOptions {
  /** Formats that can explain their records. */
  formats?: readonly FormatDescription[];
  /** The checksum's implementation. */
  crc32c?: Crc32c;
}

/** Records listed of each type, and of all; further ones are counted. */
const LISTED_PER_TYPE = 10_000;
const LISTED = 40_000;
/** Types of which the omitted records are counted one by one. */
const OMITTED_TYPES = 1000;
/** Characters of JSON that all fields together may take. */
const FIELDS_LENGTH = 4 * 1024 * 1024;
/** Bytes shown of what is unknown. */
const FIRST_BYTES = 16;

/**
 * Inspects a blob. It never rejects because of the blob: a defect is reported as `error`, beside everything that
 * came before it. It rejects with whatever `chunks` throws.
 * @param chunks the blob's bytes, in pieces of any size; read to their end
 */
export async function inspect(
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  options: InspectOptions = {},
): Promise<Inspection> {
  const collector = new Collector(options);
  for await (const chunk of chunks) collector.push(chunk);
  return collector.finish();
}

class Collector {
  readonly #formats: readonly FormatDescription[];
  readonly #decoder: EnvelopeDecoder;
  readonly #records: RecordInspection[] = [];
  readonly #listedOfType = new Map<number, number>();
  readonly #omitted = new Map<number | null, OmittedRecords>();
  readonly #totals = { records: 0, payloadBytes: 0 };
  readonly #fields: RecordFields[] = [];
  #fieldsLength = 0;
  #fieldsOmitted = 0;
  #header: EnvelopeHeader | undefined;
  #description: FormatDescription | undefined;
  #size = 0;
  #first: Uint8Array = new Uint8Array(0);
  #error: InspectionError | null = null;

  constructor(options: InspectOptions) {
    this.#formats = options.formats ?? [];
    const callbacks = {
      onHeader: (header: EnvelopeHeader) => this.#onHeader(header),
      onRecord: (record: DecodedRecord) => this.#onRecord(record),
    };
    const crc = options.crc32c === undefined ? {} : { crc32c: options.crc32c };
    this.#decoder = new EnvelopeDecoder(callbacks, { lenient: true, ...crc });
  }

  push(chunk: Uint8Array): void {
    this.#size += chunk.length;
    if (this.#first.length < FIRST_BYTES) {
      this.#first = Buffer.concat([this.#first, chunk.subarray(0, FIRST_BYTES - this.#first.length)]);
    }
    if (this.#error === null) this.#noting(() => this.#decoder.push(chunk));
  }

  finish(): Inspection {
    let digest: string | null = null;
    if (this.#error === null) {
      this.#noting(() => {
        digest = this.#decoder.finish().digest;
      });
    }
    const header = this.#header;
    if (header === undefined) {
      return { kind: 'unknown', size: this.#size, first: hex(this.#first), error: this.#error! };
    }
    const registered = findFormat(header.format);
    return {
      kind: 'envelope',
      size: this.#size,
      format: {
        uuid: header.format,
        name: registered?.name ?? null,
        kind: registered?.kind ?? null,
        version: formatVersionText(header.version),
      },
      model: header.model,
      parameters: header.parameters,
      producer: header.producer,
      stream: header.stream,
      features: header.features,
      other: fieldOf(header.other) as FieldMap,
      records: this.#records,
      omitted: [...this.#omitted.values()],
      totals: this.#totals,
      digest: { algorithm: DIGEST_ALGORITHM, ok: digest !== null, value: digest },
      fields: this.#fields,
      fieldsOmitted: this.#fieldsOmitted,
      error: this.#error,
    };
  }

  #noting(work: () => void): void {
    try {
      work();
    } catch (cause) {
      const { code, message } = asDevstateError(cause);
      const at = cause instanceof EnvelopeError ? cause : undefined;
      this.#error = { code, message, offset: at?.offset ?? null, record: at?.record ?? null };
    }
  }

  #onHeader(header: EnvelopeHeader): void {
    this.#header = header;
    this.#description = this.#formats.find((format) => format.uuid === header.format);
  }

  #onRecord({ sequence, type, flags, payload, offset }: DecodedRecord): void {
    const length = payload.length;
    this.#totals.records++;
    this.#totals.payloadBytes += length;
    const name = type === EnvelopeRecord.opaque ? 'opaque' : (this.#description?.recordName(type) ?? null);
    const listed = this.#listedOfType.get(type) ?? 0;
    if (listed === LISTED_PER_TYPE || this.#records.length === LISTED) {
      this.#omit(type, name, length);
      return;
    }
    this.#listedOfType.set(type, listed + 1);
    const first = name === null ? hex(payload.subarray(0, FIRST_BYTES)) : null;
    const optional = (flags & RecordFlag.optional) !== 0;
    this.#records.push({ sequence, type, name, flags, optional, length, offset, first });
    if (name !== null) this.#describe(sequence, type, name, payload);
  }

  #omit(type: number, name: string | null, length: number): void {
    const known = this.#omitted.has(type) || this.#omitted.size < OMITTED_TYPES;
    const key = known ? type : null;
    const entry = this.#omitted.get(key) ?? {
      type: key,
      name: known ? name : null,
      count: 0,
      payloadBytes: 0,
    };
    entry.count++;
    entry.payloadBytes += length;
    this.#omitted.set(key, entry);
  }

  #describe(record: number, type: number, name: string, payload: Uint8Array): void {
    if (this.#fieldsLength >= FIELDS_LENGTH) {
      this.#fieldsOmitted++;
      return;
    }
    let values: FieldMap | undefined;
    try {
      values = this.#description?.describe?.(type, payload, this.#header!.version);
    } catch (error) {
      values = { error: asDevstateError(error).message };
    }
    if (values === undefined) return;
    this.#fieldsLength += JSON.stringify(values).length;
    this.#fields.push({ record, name, values });
  }
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');
}

function fieldOf(value: MetadataValue): FieldValue {
  if (value instanceof Uint8Array) return hex(value);
  if (Array.isArray(value)) return value.map(fieldOf);
  if (!isMetadataMap(value)) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, fieldOf(item)]));
}
