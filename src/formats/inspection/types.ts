// SPDX-License-Identifier: Apache-2.0
/** What inspection finds: plain values, as `devstate inspect -o json` prints them. New members may be added. */
import type { FormatVersion } from '../envelope/header.js';
import type { FieldMap } from '../fields.js';
import type { ContentReport } from '../foreign/content.js';
import type { ParameterValue } from '../model.js';
import type { RegisteredFormat } from '../registered-format.js';
import type { SignatureGroup } from '../signatures/index.js';
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
  /** Name of the type; null if this version does not know it. */
  name: string | null;
  flags: number;
  optional: boolean;
  /** Payload length, in bytes. */
  length: number;
  /** Bytes that the payload takes in the blob: fewer than `length` if it is compressed. */
  storedLength: number;
  /** How it is compressed; null if it is not. */
  compression: string | null;
  /** CRC-32C of the payload, 8 hexadecimal digits: of equal payloads it is equal. */
  crc32c: string;
  /** Offset of the record's header in the blob, in bytes. */
  offset: number;
  /** First bytes of the payload, hexadecimal, of a record that has no name or cannot be decompressed here; else null. */
  first: string | null;
}

/** Records of one type that were too many to be listed. */
export interface OmittedRecords {
  /** null: of further types, too many to be distinguished. */
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

/** A foreign stream. Offsets in `content` count from its own start. */
export interface OpaqueInspection {
  size: number;
  /** What it is; null if this version does not know. */
  content: ContentReport | null;
  /** First bytes, hexadecimal, if `content` is null; else null. */
  first: string | null;
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
  /** The foreign stream that the blob's opaque records carry; null if there is none. */
  opaque: OpaqueInspection | null;
  fields: RecordFields[];
  /** Records whose fields were left out because there were too many. */
  fieldsOmitted: number;
  error: InspectionError | null;
}

/** Content that is not ours, of a kind that shows what it is. */
export interface ContentInspection {
  kind: 'content';
  size: number;
  /** What it is, for people: `QEMU migration stream`. */
  title: string;
  /** What it is for, if it is no state and only its first bytes were looked at. */
  recognised?: SignatureGroup;
  content: ContentReport;
  error: InspectionError | null;
}

/** Bytes that are neither an envelope nor of a known kind, or one whose header is damaged; `error` says which. */
export interface UnknownInspection {
  kind: 'unknown';
  size: number;
  /** First bytes, hexadecimal. */
  first: string;
  error: InspectionError;
}

export type Inspection = EnvelopeInspection | ContentInspection | UnknownInspection;
