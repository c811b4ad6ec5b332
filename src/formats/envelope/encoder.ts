// SPDX-License-Identifier: Apache-2.0
/** Writes an envelope piece by piece. Pure: it returns bytes, the caller sends them. */
import { createHash } from 'node:crypto';
import { DevstateError } from '../../errors.js';
import {
  COMPRESSION_FLAGS,
  compressPayload,
  compressPayloadLater,
  mayInflateTo,
  type StoredPayload,
} from './compression.js';
import { type Crc32c, crc32c } from './crc32c.js';
import { type EnvelopeHeader, encodeHeader } from './header.js';
import {
  DIGEST_ALGORITHM,
  END_LENGTH,
  EndOffset,
  EnvelopeRecord,
  FEATURE_FLAGS_MASK,
  padded,
  RECORD_HEADER_LENGTH,
  RECORD_LENGTH_MAX,
  RecordOffset,
} from './layout.js';

export interface EncoderOptions {
  /** Feature name → the record flags it defines; a header that names others is refused. Default: the compressions. */
  features?: ReadonlyMap<string, number>;
  /** The checksum's implementation. Default: the fastest there is. */
  crc32c?: Crc32c;
}

/** Padding after a payload; never written to. */
const ZEROS = new Uint8Array(8);

/**
 * One envelope, in this order: {@link header}, any number of {@link record}, {@link end}.
 * Another order is a mistake of the caller's: DEVSTATE_E_INTERNAL.
 */
export class EnvelopeEncoder {
  readonly #header: EnvelopeHeader;
  readonly #crc32c: Crc32c;
  readonly #flagsAllowed: number;
  readonly #digest = createHash(DIGEST_ALGORITHM);
  #state: 'header' | 'records' | 'ended' = 'header';
  #records = 0;
  #payloadBytes = 0;
  /** The same before compression. */
  #plainBytes = 0;

  constructor(header: EnvelopeHeader, options: EncoderOptions = {}) {
    this.#header = header;
    this.#crc32c = options.crc32c ?? crc32c;
    let flags = ~FEATURE_FLAGS_MASK;
    for (const name of header.features)
      flags |= (options.features ?? COMPRESSION_FLAGS).get(name) ?? misuse(`no feature ${name} is defined`);
    this.#flagsAllowed = flags;
  }

  /** Records written so far. */
  get records(): number {
    return this.#records;
  }

  /** Payload bytes written so far, without padding. */
  get payloadBytes(): number {
    return this.#payloadBytes;
  }

  /** All bytes before the first record. DEVSTATE_E_ENVELOPE_METADATA if the header holds what no reader accepts. */
  header(): Uint8Array {
    if (this.#state !== 'header') misuse('the header is written once, first');
    const bytes = encodeHeader(this.#header, this.#crc32c);
    this.#digest.update(bytes);
    this.#state = 'records';
    return bytes;
  }

  /**
   * One record, as parts to be sent one after the other: header, `payload` itself (not a copy), padding if any. With a
   * compression among the header's features, payloads that become smaller by it are compressed.
   * @param type a type of the format, or {@link EnvelopeRecord}.opaque
   * @param flags {@link RecordFlag}, and bits that the format or a feature defines
   * @param payload at most {@link RECORD_LENGTH_MAX} bytes, else DEVSTATE_E_ENVELOPE_RECORD_TOO_LONG: split it,
   *   the format says how it continues
   */
  record(type: number, flags: number, payload: Uint8Array): Uint8Array[] {
    this.#check(type, flags, payload);
    return this.#write(type, flags, payload, compressPayload(payload, this.#header.features));
  }

  /** As {@link record}, compressing on another thread: `payload` must not change, and no other call may come, until it settles. */
  async recordLater(type: number, flags: number, payload: Uint8Array): Promise<Uint8Array[]> {
    this.#check(type, flags, payload);
    return this.#write(type, flags, payload, await compressPayloadLater(payload, this.#header.features));
  }

  #check(type: number, flags: number, payload: Uint8Array): void {
    if (this.#state !== 'records') misuse('records are written between header and end');
    if (!isU32(type) || type === 0 || type === EnvelopeRecord.end) misuse(`${type} is not a record type`);
    if (!isU32(flags) || (flags & ~this.#flagsAllowed) !== 0)
      misuse(`0x${flags.toString(16)} are not record flags`);
    if (payload.length > RECORD_LENGTH_MAX) {
      throw new DevstateError(
        'DEVSTATE_E_ENVELOPE_RECORD_TOO_LONG',
        `a record of ${payload.length} bytes exceeds ${RECORD_LENGTH_MAX}: split it`,
      );
    }
  }

  #write(type: number, flags: number, payload: Uint8Array, compressed: StoredPayload): Uint8Array[] {
    const { payload: stored, flag } = this.#fitting(payload, compressed);
    this.#plainBytes += payload.length;
    const header = this.#recordHeader(type, flags | flag, stored);
    this.#digest.update(header);
    this.#records++;
    this.#payloadBytes += stored.length;
    const padding = padded(stored.length) - stored.length;
    return padding === 0 ? [header, stored] : [header, stored, ZEROS.subarray(0, padding)];
  }

  /** No reader takes a blob that becomes too much larger. */
  #fitting(payload: Uint8Array, compressed: StoredPayload): StoredPayload {
    const { length } = compressed.payload;
    const fits = mayInflateTo(this.#plainBytes + payload.length, this.#payloadBytes + length);
    return fits ? compressed : { payload, flag: 0 };
  }

  /** The end record: the last bytes of the blob. */
  end(): Uint8Array {
    if (this.#state !== 'records') misuse('the end is written once, after the header');
    this.#state = 'ended';
    const bytes = new Uint8Array(RECORD_HEADER_LENGTH + END_LENGTH);
    const payload = bytes.subarray(RECORD_HEADER_LENGTH);
    const view = new DataView(payload.buffer, payload.byteOffset);
    view.setBigUint64(EndOffset.records, BigInt(this.#records), true);
    view.setBigUint64(EndOffset.payloadBytes, BigInt(this.#payloadBytes), true);
    payload.set(this.#digest.digest(), EndOffset.digest);
    bytes.set(this.#recordHeader(EnvelopeRecord.end, 0, payload));
    return bytes;
  }

  #recordHeader(type: number, flags: number, payload: Uint8Array): Uint8Array {
    const header = new Uint8Array(RECORD_HEADER_LENGTH);
    const view = new DataView(header.buffer);
    view.setUint32(RecordOffset.type, type, true);
    view.setUint32(RecordOffset.flags, flags, true);
    view.setUint32(RecordOffset.length, payload.length, true);
    view.setUint32(RecordOffset.payloadCrc, this.#crc32c(payload), true);
    view.setUint32(RecordOffset.sequence, this.#records, true);
    view.setUint32(RecordOffset.sequence + 4, Math.floor(this.#records / 2 ** 32), true);
    const crc = this.#crc32c(header.subarray(0, RecordOffset.headerCrc));
    view.setUint32(RecordOffset.headerCrc, crc, true);
    return header;
  }
}

function isU32(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff;
}

function misuse(message: string): never {
  throw new DevstateError('DEVSTATE_E_INTERNAL', `envelope encoder: ${message}`);
}
