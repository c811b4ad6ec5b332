// SPDX-License-Identifier: Apache-2.0
/**
 * Records that a conversion does not understand, or not all of, and may not drop: carried along as envelope records of type `kept`,
 * and put back when the blob is converted to their format again. See `formats/README.md`, "Kept records".
 */
import { EnvelopeError } from '../envelope/envelope-error.js';
import { FORMAT_RECORD_TYPES, RECORD_LENGTH_MAX } from '../envelope/layout.js';
import { type Uuid, uuidFromBytes, uuidToBytes } from '../uuid.js';
import type { FormatRecord } from './converter.js';
import type { FormatPoint } from './path.js';

/** Offsets within the payload; the kept payload follows. */
const Offset = { format: 0, major: 16, role: 18, type: 20, flags: 24, continues: 28 } as const;
const HEAD_LENGTH = 32;

/** What a kept record is kept for. */
export const KeptRole = {
  /** It was not understood: it is a record again when its format is reached again. */
  record: 0,
  /** It was understood in part: it stands for the record that comes of the conversion back, where that says the same. */
  original: 1,
} as const;
export type KeptRole = (typeof KeptRole)[keyof typeof KeptRole];

type Where = { offset: number; record?: number };

/** Makes `kept` records. One buffer serves for all of them: a new one each time would cost more than what is copied. */
export class RecordKeeper {
  #buffer = new Uint8Array(0);

  /** `record` of format `point` as the payloads of one or two `kept` records; each is valid until the next is asked for. */
  *keep(record: FormatRecord, point: FormatPoint, role: KeptRole = KeptRole.record): Generator<Uint8Array> {
    let rest = record.payload;
    do {
      const piece = rest.subarray(0, RECORD_LENGTH_MAX - HEAD_LENGTH);
      rest = rest.subarray(piece.length);
      const payload = this.#take(HEAD_LENGTH + piece.length);
      const view = new DataView(payload.buffer);
      payload.set(uuidToBytes(point.uuid), Offset.format);
      view.setUint16(Offset.major, point.major, true);
      view.setUint16(Offset.role, role, true);
      view.setUint32(Offset.type, record.type, true);
      view.setUint32(Offset.flags, record.formatFlags ?? 0, true);
      view.setUint32(Offset.continues, rest.length > 0 ? 1 : 0, true);
      payload.set(piece, HEAD_LENGTH);
      yield payload;
    } while (rest.length > 0);
  }

  #take(length: number): Uint8Array {
    if (this.#buffer.length < length) this.#buffer = new Uint8Array(length);
    return this.#buffer.subarray(0, length);
  }
}

/** What the first bytes of a `kept` record's payload say. */
export interface KeptHead {
  readonly uuid: Uuid;
  readonly major: number;
  /** A {@link KeptRole} from every writer there is. */
  readonly role: number;
  readonly type: number;
  readonly formatFlags: number;
  /** 1 if the next `kept` record continues this one's payload, else 0. */
  readonly continues: number;
  /** Bytes of the kept payload that are here. */
  readonly length: number;
}

/** @throws RangeError when the payload is too short */
export function readKeptHead(payload: Uint8Array): KeptHead {
  if (payload.length < HEAD_LENGTH) throw new RangeError(`a kept record of ${payload.length} bytes`);
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
  return {
    uuid: uuidFromBytes(payload, Offset.format),
    major: view.getUint16(Offset.major, true),
    role: view.getUint16(Offset.role, true),
    type: view.getUint32(Offset.type, true),
    formatFlags: view.getUint32(Offset.flags, true),
    continues: view.getUint32(Offset.continues, true),
    length: payload.length - HEAD_LENGTH,
  };
}

/** A kept record, whole. */
export interface Kept {
  readonly record: FormatRecord;
  /** The format that it is of. */
  readonly point: FormatPoint;
  readonly role: KeptRole;
}

/** Puts kept records together again. */
export class KeptRecords {
  /** The payload that is to be continued. */
  #begun: Uint8Array | undefined;

  /**
   * Takes the payload of the next `kept` record.
   * @returns the record that it ends, with its format; undefined if it continues
   * @param where its place in the blob, for errors
   * @throws EnvelopeError RECORD when it is not as it should be
   */
  take(payload: Uint8Array, where: Where): Kept | undefined {
    if (payload.length < HEAD_LENGTH) throw damaged(`a kept record of ${payload.length} bytes`, where);
    const { uuid, major, role, type, formatFlags, continues } = readKeptHead(payload);
    if (!isRole(role) || type < FORMAT_RECORD_TYPES || (formatFlags & 0xffff) !== 0 || continues > 1) {
      throw damaged('a kept record that no writer makes', where);
    }
    const begun = this.#begun;
    // Two are enough for the longest record; more would only be copied, again and again.
    if (begun !== undefined && (continues === 1 || !isSameHead(begun, payload))) {
      throw damaged('a kept record that does not continue the one before', where);
    }
    if (continues === 1) {
      this.#begun = new Uint8Array(payload);
      return undefined;
    }
    this.#begun = undefined;
    const piece = payload.subarray(HEAD_LENGTH);
    const whole = begun === undefined ? piece : Buffer.concat([begun.subarray(HEAD_LENGTH), piece]);
    if (whole.length > RECORD_LENGTH_MAX) throw damaged('a kept record longer than any record', where);
    const point = { uuid, major };
    return { record: { type, optional: true, formatFlags, payload: whole }, point, role };
  }

  /** No more come. @throws EnvelopeError RECORD when one was to continue */
  end(where: Where): void {
    if (this.#begun !== undefined) throw damaged('a kept record that does not continue', where);
  }
}

function isRole(role: number): role is KeptRole {
  return role === KeptRole.record || role === KeptRole.original;
}

/** Whether two payloads are of the same record. */
function isSameHead(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a.subarray(0, Offset.continues), b.subarray(0, Offset.continues)) === 0;
}

function damaged(what: string, where: Where): EnvelopeError {
  return new EnvelopeError('DEVSTATE_E_ENVELOPE_RECORD', what, where);
}
