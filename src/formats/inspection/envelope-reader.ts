// SPDX-License-Identifier: Apache-2.0
/** One of our own blobs, as it passes by: what its header says, its records, their fields, and whether it is whole. */
import { asDevstateError } from '../../errors.js';
import { KeptRole, readKeptHead } from '../conversion/kept-record.js';
import { compressionFlags } from '../envelope/compression.js';
import { type Crc32c, crc32c } from '../envelope/crc32c.js';
import { type DecodedRecord, EnvelopeDecoder } from '../envelope/decoder.js';
import { EnvelopeError } from '../envelope/envelope-error.js';
import type { EnvelopeHeader } from '../envelope/header.js';
import { DIGEST_ALGORITHM, EnvelopeRecord, FORMAT_RECORD_TYPES, RecordFlag } from '../envelope/layout.js';
import { isMetadataMap, type MetadataValue } from '../envelope/msgpack.js';
import type { FieldMap, FieldValue } from '../fields.js';
import type { ContentKind, Extraction } from '../foreign/content.js';
import { type NestedContent, Nesting } from '../foreign/nested-content.js';
import { findFormat, formatVersionText } from '../registry.js';
import type {
  EnvelopeInspection,
  FormatDescription,
  InspectionError,
  OmittedRecords,
  RecordFields,
  RecordInspection,
  UnknownInspection,
} from './types.js';

export interface EnvelopeReaderOptions {
  /** Formats that can explain their records. */
  readonly formats?: readonly FormatDescription[];
  /** What to look for in the stream of opaque records. */
  readonly kinds?: readonly ContentKind[];
  /** Takes that stream, and the payloads of the first records. */
  readonly extraction?: Extraction | undefined;
  /** Records listed; further ones are counted. Default: 40,000. */
  readonly listed?: number;
  /** The checksum's implementation. */
  readonly crc32c?: Crc32c;
}

/** Records listed of each type, and of all. */
const LISTED_PER_TYPE = 10_000;
const LISTED = 40_000;
/** Types of which the omitted records are counted one by one. */
const OMITTED_TYPES = 1000;
/** Characters of JSON that all fields together may take. */
const FIELDS_LENGTH = 4 * 1024 * 1024;
/** Bytes of a payload whose fields are shown: as values they take up to a hundred times as much. */
const DESCRIBED_LENGTH = 256 * 1024;
/** Bytes shown of what is unknown. */
const FIRST_BYTES = 16;

/** Records whose payloads are extracted. */
const EXTRACTED = 1024;

/**
 * Reads one blob. It never throws because of the blob: a defect is reported as `error`, beside everything that came
 * before it. Memory is bounded, however long the blob is.
 */
export class EnvelopeReader {
  readonly #formats: readonly FormatDescription[];
  readonly #nesting: Nesting;
  readonly #listed: number;
  readonly #decoder: EnvelopeDecoder;
  #opaque: NestedContent | undefined;
  #opaqueSize = 0;
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

  constructor(options: EnvelopeReaderOptions) {
    this.#formats = options.formats ?? [];
    this.#nesting = new Nesting(options.kinds ?? [], options.extraction);
    this.#listed = options.listed ?? LISTED;
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

  finish(): EnvelopeInspection | UnknownInspection {
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
      opaque: this.#opaque === undefined ? null : { size: this.#opaqueSize, ...this.#opaque.finish() },
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
      // Not the blob's fault.
      if (code === 'DEVSTATE_E_OUTPUT') throw cause;
      const at = cause instanceof EnvelopeError ? cause : undefined;
      this.#error = { code, message, offset: at?.offset ?? null, record: at?.record ?? null };
    }
  }

  #onHeader(header: EnvelopeHeader): void {
    this.#header = header;
    // What a version that this version does not know means by its records is not to be guessed.
    if (isUnknownVersion(header)) return;
    this.#description = this.#formats.find((format) => format.uuid === header.format);
  }

  #onRecord(record: DecodedRecord): void {
    const { sequence, type, flags, payload, offset, storedLength, sealed } = record;
    const length = payload.length;
    this.#totals.records++;
    this.#totals.payloadBytes += length;
    const name = this.#nameOf(type);
    if (!sealed) this.#pass(sequence, type, name, payload);
    const listed = this.#listedOfType.get(type) ?? 0;
    if (listed === LISTED_PER_TYPE || this.#records.length >= this.#listed) {
      this.#omit(type, name, length);
      return;
    }
    this.#listedOfType.set(type, listed + 1);
    const isCompressed = sealed || storedLength !== length;
    const crc = isCompressed && !sealed ? crc32c(payload) : record.storedCrc;
    this.#records.push({
      sequence,
      type,
      name,
      flags,
      optional: (flags & RecordFlag.optional) !== 0,
      length,
      storedLength,
      compression: isCompressed ? this.#compressionOf(flags) : null,
      crc32c: crc.toString(16).padStart(8, '0'),
      offset,
      first: name === null || sealed ? hex(payload.subarray(0, FIRST_BYTES)) : null,
    });
    if (name !== null && !sealed) this.#describe(sequence, type, name, payload);
  }

  #nameOf(type: number): string | null {
    if (type === EnvelopeRecord.opaque) return 'opaque';
    if (type === EnvelopeRecord.kept) return 'kept';
    return this.#description?.recordName(type) ?? null;
  }

  #compressionOf(flags: number): string | null {
    const { features } = this.#header!;
    return features.find((feature) => (compressionFlags([feature]) & flags) !== 0) ?? null;
  }

  /** Gives a payload to who wants the bytes themselves. */
  #pass(sequence: number, type: number, name: string | null, payload: Uint8Array): void {
    if (type === EnvelopeRecord.opaque) {
      this.#opaqueSize += payload.length;
      this.#opaque ??= this.#nesting.open('opaque.bin', 0);
      this.#opaque?.push(payload);
      return;
    }
    const { extraction } = this.#nesting;
    if (extraction === undefined || sequence >= EXTRACTED) return;
    const what = name ?? type.toString(16).padStart(8, '0');
    const file = extraction.begin(`record-${sequence}.${what}.bin`);
    file.write(payload);
    file.end();
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
    const kept = type === EnvelopeRecord.kept;
    const description = type >= FORMAT_RECORD_TYPES ? this.#description : undefined;
    if (!kept && description?.describe === undefined) return;
    if (this.#fieldsLength >= FIELDS_LENGTH || (!kept && payload.length > DESCRIBED_LENGTH)) {
      this.#fieldsOmitted++;
      return;
    }
    let values: FieldMap | undefined;
    try {
      values = kept ? describeKept(payload) : description?.describe?.(type, payload, this.#header!.version);
    } catch (error) {
      values = { error: asDevstateError(error).message };
    }
    if (values === undefined) return;
    this.#fieldsLength += JSON.stringify(values).length;
    this.#fields.push({ record, name, values });
  }
}

/** Whether the format is registered, but not with this major version. */
function isUnknownVersion({ format, version }: EnvelopeHeader): boolean {
  const versions = findFormat(format)?.versions;
  return versions !== undefined && !versions.some((known) => known.startsWith(`${version.major}.`));
}

/** The head of a kept record; its payload is of a format that the blob is not of. */
function describeKept(payload: Uint8Array): FieldMap {
  const { uuid, major, role, type, length, continues } = readKeptHead(payload);
  const format = findFormat(uuid)?.name ?? uuid;
  const original = role === KeptRole.original;
  return { format, major, type: `0x${type.toString(16).padStart(8, '0')}`, original, length, continues };
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
