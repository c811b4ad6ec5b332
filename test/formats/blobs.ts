// SPDX-License-Identifier: Apache-2.0
/** Blobs for the tests of formats: sound ones from the encoder, forged ones with checksums made to fit. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { DevstateError } from '../../src/errors.js';
import { crc32c } from '../../src/formats/envelope/crc32c.js';
import { type DecoderOptions, decodeEnvelope } from '../../src/formats/envelope/decoder.js';
import { EnvelopeEncoder } from '../../src/formats/envelope/encoder.js';
import type { EnvelopeHeader } from '../../src/formats/envelope/header.js';
import { padded } from '../../src/formats/envelope/layout.js';
import { NVME_ALDER } from '../../src/formats/registry.js';
import { parseUuid } from '../../src/formats/uuid.js';

/** The header of `formats/fixtures/minimal.bin`. */
export const MINIMAL_HEADER: EnvelopeHeader = {
  format: NVME_ALDER.uuid,
  version: { major: 1, minor: 0 },
  model: 'devstate.org/nvme',
  parameters: { queues: 4 },
  producer: { name: 'devstate', version: '0.1.0' },
  stream: parseUuid('ffb52a17-6d23-4071-bc66-ecaaf72ae18c'),
  features: [],
  other: {},
};

export interface PlainRecord {
  type: number;
  flags: number;
  payload: Uint8Array;
}

/** The records of `formats/fixtures/minimal.bin`. */
export const MINIMAL_RECORDS: PlainRecord[] = [
  { type: 0x10001, flags: 0, payload: Buffer.from('hello') },
  { type: 0x10002, flags: 1, payload: new Uint8Array(0) },
];

export function encodeBlob(records: readonly PlainRecord[], header = MINIMAL_HEADER): Uint8Array {
  const encoder = new EnvelopeEncoder(header);
  const parts = [encoder.header()];
  for (const { type, flags, payload } of records) parts.push(...encoder.record(type, flags, payload));
  return new Uint8Array(Buffer.concat([...parts, encoder.end()]));
}

export function fixture(name: string): Buffer {
  return readFileSync(new URL(`../../../formats/fixtures/${name}`, import.meta.url));
}

/** Where the pieces of a blob without header extension lie: header, each record, end. */
export function piecesOf(blob: Uint8Array): { header: Uint8Array; records: Uint8Array[]; end: Uint8Array } {
  const offsets = decodeEnvelope(blob).records.map((record) => record.offset);
  const end = blob.length - 80;
  const records = offsets.map((offset, index) => blob.slice(offset, offsets[index + 1] ?? end));
  return { header: blob.slice(0, offsets[0] ?? end), records, end: blob.slice(end) };
}

/** Values to write over those of a record header before its checksum is made to fit. */
export interface RecordForgery {
  length?: number;
  sequence?: number;
  reserved?: number;
}

/** A record whose checksums are right, whatever else is not. */
export function forgeRecord(sequence: number, record: PlainRecord, forgery: RecordForgery = {}): Uint8Array {
  const { type, flags, payload } = record;
  const bytes = Buffer.alloc(32 + padded(payload.length));
  bytes.writeUInt32LE(type, 0);
  bytes.writeUInt32LE(flags, 4);
  bytes.writeUInt32LE(forgery.length ?? payload.length, 8);
  bytes.writeUInt32LE(crc32c(payload), 12);
  bytes.writeBigUInt64LE(BigInt(forgery.sequence ?? sequence), 16);
  bytes.writeUInt32LE(forgery.reserved ?? 0, 24);
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, 28)), 28);
  bytes.set(payload, 32);
  return bytes;
}

/** An end record that fits what precedes it, except for what is forged. */
export function forgeEnd(
  header: Uint8Array,
  records: readonly Uint8Array[],
  forgery: { count?: number; payloadBytes?: number; flags?: number } = {},
): Uint8Array {
  const digest = createHash('sha256').update(header);
  let bytes = 0;
  for (const record of records) {
    digest.update(record.subarray(0, 32));
    bytes += Buffer.from(record).readUInt32LE(8);
  }
  const payload = Buffer.alloc(48);
  payload.writeBigUInt64LE(BigInt(forgery.count ?? records.length), 0);
  payload.writeBigUInt64LE(BigInt(forgery.payloadBytes ?? bytes), 8);
  payload.set(digest.digest(), 16);
  return forgeRecord(records.length, { type: 1, flags: forgery.flags ?? 0, payload });
}

/** A fixed header with `changes` (offset → bytes) applied and its checksum made to fit. */
export function forgeHeader(header: Uint8Array, changes: Record<number, readonly number[]>): Uint8Array {
  const bytes = Buffer.from(header);
  for (const [offset, values] of Object.entries(changes)) bytes.set(values, Number(offset));
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, 44)), 44);
  return bytes;
}

/** The code that decoding ends with, '' if it succeeds. Errors without a code are thrown on. */
export function codeOf(blob: Uint8Array, options?: DecoderOptions): string {
  return codeThrownBy(() => decodeEnvelope(blob, options));
}

/** The code of the DevstateError that `work` throws, '' if it throws nothing. */
export function codeThrownBy(work: () => unknown): string {
  try {
    work();
    return '';
  } catch (error) {
    if (error instanceof DevstateError) return error.code;
    throw error;
  }
}
