// SPDX-License-Identifier: Apache-2.0
/**
 * Reads an envelope from chunks of any size. Pure: bytes are pushed in, callbacks take what they hold.
 * Memory is bounded by one record ({@link RECORD_LENGTH_MAX}), and grows only as bytes really arrive.
 */
import { createHash } from 'node:crypto';
import { DevstateError } from '../../errors.js';
import { Turns } from '../../turns.js';
import {
  COMPRESSION_FLAGS,
  compressionFlags,
  mayInflateTo,
  type SealedPayload,
  sealedPayload,
  withoutFeature,
} from './compression.js';
import { type Crc32c, crc32c } from './crc32c.js';
import { ElementAssembler } from './element-assembler.js';
import { EnvelopeError, type EnvelopeErrorCode } from './envelope-error.js';
import {
  decodeFixedHeader,
  decodeMetadata,
  type EnvelopeHeader,
  type FixedHeader,
  headerLengthOf,
} from './header.js';
import {
  DIGEST_ALGORITHM,
  END_LENGTH,
  EndOffset,
  EnvelopeRecord,
  FEATURE_FLAGS_MASK,
  FORMAT_RECORD_TYPES,
  HEADER_INVARIANT_LENGTH,
  padded,
  RECORD_HEADER_LENGTH,
  RECORD_LENGTH_MAX,
  RecordFlag,
  RecordOffset,
} from './layout.js';

/** A record, checked against its checksum. */
export interface DecodedRecord {
  type: number;
  flags: number;
  /** Its place among the records, counted from 0. */
  sequence: number;
  /** Offset of the record's header in the blob, in bytes. */
  offset: number;
  /** Bytes of the payload in the blob: fewer than `payload` has if it is compressed. */
  storedLength: number;
  /** The checksum over those bytes. */
  storedCrc: number;
  /** Compressed in a way that this runtime cannot undo: `payload` is as stored. Only a lenient reader sees such a record. */
  sealed: boolean;
  /** Plain. Valid only until the callback returns: copy what must stay. */
  payload: Uint8Array;
}

/** What the end record vouches for. */
export interface EnvelopeSummary {
  /** Records before the end record. */
  records: number;
  /** Bytes of their payloads, without padding. */
  payloadBytes: number;
  /** Length of the blob, in bytes. */
  length: number;
  /** The SHA-256 in the end record, hexadecimal. */
  digest: string;
}

export interface DecoderCallbacks {
  /** The header; nothing of the blob has been passed on before. Throw to refuse the format. */
  onHeader?(header: EnvelopeHeader): void;
  /** Each record in its order, the end record not among them. Throw to refuse it. */
  onRecord?(record: DecodedRecord): void;
}

export interface DecoderOptions {
  /** Feature name → the record flags it defines; a blob that requires others is refused. Default: the compressions. */
  features?: ReadonlyMap<string, number>;
  /** Accept unknown features and unknown record types of the envelope: for tools that look at a blob and never load it. */
  lenient?: boolean;
  /** The checksum's implementation. Default: the fastest there is. */
  crc32c?: Crc32c;
}

type State = 'header' | 'headerRest' | 'metadata' | 'recordHeader' | 'payload' | 'done';

/** The record whose payload is awaited. */
interface PendingRecord {
  type: number;
  flags: number;
  length: number;
  payloadCrc: number;
}

/** Payloads that become longer than this are decompressed on another thread there. */
const AT_ONCE_MAX = 1024 * 1024;

const NO_BYTES = new Uint8Array(0);

/**
 * Push parser of one envelope. After an error (its own or one that a callback threw) it stays failed:
 * every further call throws that error again.
 */
export class EnvelopeDecoder {
  readonly #callbacks: DecoderCallbacks;
  readonly #features: ReadonlyMap<string, number>;
  readonly #lenient: boolean;
  readonly #crc32c: Crc32c;
  readonly #assembler = new ElementAssembler(HEADER_INVARIANT_LENGTH);
  readonly #digest = createHash(DIGEST_ALGORITHM);
  #state: State = 'header';
  #failure: { error: unknown } | undefined;
  /** Offset in the blob of the element that is awaited. */
  #offset = 0;
  #recordOffset = 0;
  #headerStart = NO_BYTES;
  #fixed: FixedHeader | undefined;
  #flagsAllowed = ~FEATURE_FLAGS_MASK;
  #compressionFlags = 0;
  readonly #pending: PendingRecord = { type: 0, flags: 0, length: 0, payloadCrc: 0 };
  #records = 0;
  #payloadBytes = 0;
  /** The same after decompression. */
  #plainBytes = 0;
  #digestHex = '';

  constructor(callbacks: DecoderCallbacks, options: DecoderOptions = {}) {
    this.#callbacks = callbacks;
    this.#features = options.features ?? COMPRESSION_FLAGS;
    this.#lenient = options.lenient ?? false;
    this.#crc32c = options.crc32c ?? crc32c;
  }

  /** Whether the end record has been read and was right. */
  get complete(): boolean {
    return this.#state === 'done' && this.#failure === undefined;
  }

  /** Takes the next bytes of the blob; they are not kept after the call. EnvelopeError, or what a callback throws. */
  push(chunk: Uint8Array): void {
    this.#guarded(() => this.#parse(chunk));
  }

  /**
   * As `push`, for bytes that somebody else decides about: other work of the process gets its turn every few milliseconds, and
   * long payloads are decompressed on another thread. A promise if that took place: `chunk` must not change, and no other
   * call may come, until it settles.
   */
  pushInTurns(chunk: Uint8Array): void | Promise<void> {
    const fail = (error: unknown): never => {
      this.#failure ??= { error };
      throw error;
    };
    if (this.#failure !== undefined) throw this.#failure.error;
    try {
      this.#assembler.start(chunk);
      return this.#parseSome()?.catch(fail);
    } catch (error) {
      return fail(error);
    }
  }

  /** Says that no bytes follow. DEVSTATE_E_ENVELOPE_TRUNCATED unless the blob was whole. */
  finish(): EnvelopeSummary {
    return this.#guarded(() => {
      if (this.#state !== 'done') throw this.#truncated();
      return {
        records: this.#records,
        payloadBytes: this.#payloadBytes,
        length: this.#offset,
        digest: this.#digestHex,
      };
    });
  }

  #guarded<T>(work: () => T): T {
    if (this.#failure !== undefined) throw this.#failure.error;
    try {
      return work();
    } catch (error) {
      this.#failure = { error };
      throw error;
    }
  }

  #parse(chunk: Uint8Array): void {
    const assembler = this.#assembler;
    assembler.start(chunk);
    while (this.#state !== 'done') {
      const element = assembler.next();
      if (element === undefined) return;
      const length = element.length;
      assembler.expect(this.#element(element, false) as number);
      this.#offset += length;
    }
    this.#requireNoRest();
  }

  /** As `#parse`, until it has taken long enough or has to wait. */
  #parseSome(): void | Promise<void> {
    const assembler = this.#assembler;
    const turns = new Turns();
    while (this.#state !== 'done') {
      const element = assembler.next();
      if (element === undefined) return undefined;
      const { length } = element;
      const next = this.#element(element, true);
      if (typeof next !== 'number') return next.then((expected) => this.#parseOn(expected, length));
      assembler.expect(next);
      this.#offset += length;
      if (turns.isOver) return turns.next().then(() => this.#parseSome());
    }
    return this.#requireNoRest();
  }

  #parseOn(expected: number, length: number): void | Promise<void> {
    this.#assembler.expect(expected);
    this.#offset += length;
    return this.#parseSome();
  }

  #requireNoRest(): void {
    const { rest } = this.#assembler;
    if (rest > 0) throw this.#wrong('TRAILING', `at least ${rest} bytes follow the end record`);
  }

  /** Takes the element that was awaited; returns the length of the next one, a promise of it only if `mayWait`. */
  #element(bytes: Uint8Array, mayWait: boolean): number | Promise<number> {
    switch (this.#state) {
      case 'header':
        this.#headerStart = new Uint8Array(bytes);
        this.#state = 'headerRest';
        return headerLengthOf(bytes) - bytes.length;
      case 'headerRest':
        return this.#header(bytes);
      case 'metadata':
        return this.#metadata(bytes);
      case 'recordHeader':
        return this.#recordHeader(bytes);
      default:
        return this.#payload(bytes, mayWait);
    }
  }

  #header(rest: Uint8Array): number {
    const bytes = new Uint8Array(Buffer.concat([this.#headerStart, rest]));
    this.#fixed = decodeFixedHeader(bytes, this.#crc32c);
    this.#digest.update(bytes);
    this.#state = 'metadata';
    return padded(this.#fixed.metadataLength);
  }

  #metadata(bytes: Uint8Array): number {
    const header = decodeMetadata(this.#fixed!, bytes, this.#crc32c);
    this.#digest.update(bytes);
    for (const name of header.features) {
      const flags = this.#features.get(name);
      if (flags === undefined && !this.#lenient) {
        throw this.#wrong('FEATURE', `the blob requires the feature ${name}, ${withoutFeature(name)}`);
      }
      this.#flagsAllowed |= flags ?? FEATURE_FLAGS_MASK;
    }
    this.#compressionFlags = compressionFlags(header.features);
    this.#callbacks.onHeader?.(header);
    this.#state = 'recordHeader';
    return RECORD_HEADER_LENGTH;
  }

  #recordHeader(bytes: Uint8Array): number {
    this.#recordOffset = this.#offset;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    const { headerCrc } = RecordOffset;
    if (view.getUint32(headerCrc, true) !== this.#crc32c(bytes.subarray(0, headerCrc))) {
      throw this.#wrongRecord('RECORD', 'the record header does not match its checksum');
    }
    const pending = this.#pending;
    pending.type = view.getUint32(RecordOffset.type, true);
    pending.flags = view.getUint32(RecordOffset.flags, true);
    pending.length = view.getUint32(RecordOffset.length, true);
    pending.payloadCrc = view.getUint32(RecordOffset.payloadCrc, true);
    const sequence =
      view.getUint32(RecordOffset.sequence, true) + 2 ** 32 * view.getUint32(RecordOffset.sequence + 4, true);
    if (view.getUint32(RecordOffset.reserved, true) !== 0) {
      throw this.#wrongRecord('RECORD', 'the reserved bytes of the record header are not zero');
    }
    this.#checkRecord(pending, sequence);
    if (pending.type !== EnvelopeRecord.end) this.#digest.update(bytes);
    this.#state = 'payload';
    return padded(pending.length);
  }

  #checkRecord({ type, flags, length }: PendingRecord, sequence: number): void {
    const expected = this.#records;
    if (sequence > expected) {
      const what = `record ${sequence} came where record ${expected} should: records were lost or reordered`;
      throw this.#wrongRecord('RECORD_MISSING', what);
    }
    if (sequence < expected) {
      const what = `record ${sequence} came where record ${expected} should: records were repeated or reordered`;
      throw this.#wrongRecord('RECORD_REPEATED', what);
    }
    if (type === EnvelopeRecord.end) {
      if (flags === 0 && length === END_LENGTH) return;
      throw this.#wrongRecord('RECORD', 'the end record has flags or a length that it cannot have');
    }
    if (length > RECORD_LENGTH_MAX) {
      const what = `a record of ${length} bytes exceeds ${RECORD_LENGTH_MAX}`;
      throw this.#wrongRecord('RECORD_TOO_LONG', what);
    }
    if (type === 0) throw this.#wrongRecord('RECORD', 'record type 0 is not allowed');
    const unknown = flags & ~this.#flagsAllowed;
    if (unknown !== 0) {
      const what = `the record flags 0x${unknown.toString(16)} belong to no feature of this blob`;
      throw this.#wrongRecord('RECORD', what);
    }
    const own = type >= FORMAT_RECORD_TYPES || type === EnvelopeRecord.opaque;
    if (!own && !this.#lenient && (flags & RecordFlag.optional) === 0) {
      throw unknownRecord(type, 'the envelope', { offset: this.#recordOffset, record: expected });
    }
  }

  #payload(bytes: Uint8Array, mayWait: boolean): number | Promise<number> {
    const { type, flags, length, payloadCrc } = this.#pending;
    const payload = bytes.length === length ? bytes : bytes.subarray(0, length);
    if (this.#crc32c(payload) !== payloadCrc) {
      throw this.#wrongRecord('PAYLOAD', 'the payload does not match its checksum');
    }
    for (let at = length; at < bytes.length; at++) {
      if (bytes[at] !== 0) throw this.#wrongRecord('PAYLOAD', 'the padding after the payload is not zero');
    }
    if (type === EnvelopeRecord.end) return this.#end(payload);
    const sealed = this.#sealed(payload, flags & this.#compressionFlags);
    if (mayWait && sealed !== undefined && sealed.plainLength > AT_ONCE_MAX)
      return this.#payloadLater(payload, sealed);
    const plain = sealed === undefined ? undefined : this.#opened(() => sealed.open());
    return this.#deliver(payload, plain);
  }

  /** As `#payload`, for one that is compressed and long. */
  async #payloadLater(payload: Uint8Array, sealed: SealedPayload): Promise<number> {
    let plain: Uint8Array;
    try {
      plain = await sealed.openLater();
    } catch (cause) {
      throw this.#notDecompressed(cause);
    }
    return this.#deliver(payload, plain);
  }

  /** Hands a record on. @param plain its payload, if that was compressed and could be decompressed */
  #deliver(payload: Uint8Array, plain: Uint8Array | undefined): number {
    const { type, flags, length, payloadCrc } = this.#pending;
    const sequence = this.#records;
    this.#records++;
    this.#payloadBytes += length;
    const isCompressed = (flags & this.#compressionFlags) !== 0;
    this.#callbacks.onRecord?.({
      type,
      flags,
      sequence,
      offset: this.#recordOffset,
      storedLength: length,
      storedCrc: payloadCrc,
      sealed: isCompressed && plain === undefined,
      payload: plain ?? payload,
    });
    this.#state = 'recordHeader';
    return RECORD_HEADER_LENGTH;
  }

  /** Undefined if the payload is plain, or cannot be decompressed here. */
  #sealed(payload: Uint8Array, flags: number): SealedPayload | undefined {
    const sealed = flags === 0 ? undefined : this.#opened(() => sealedPayload(payload, flags));
    this.#plainBytes += sealed?.plainLength ?? payload.length;
    if (mayInflateTo(this.#plainBytes, this.#payloadBytes + payload.length)) return sealed;
    const what = `the payloads so far would become ${this.#plainBytes} bytes, too many for ${this.#payloadBytes + payload.length} that are stored`;
    throw this.#wrongRecord('PAYLOAD', what);
  }

  #opened<T>(work: () => T): T {
    try {
      return work();
    } catch (cause) {
      throw this.#notDecompressed(cause);
    }
  }

  #notDecompressed(cause: unknown): EnvelopeError {
    const why = cause instanceof Error ? cause.message : String(cause);
    return this.#wrongRecord('PAYLOAD', `the payload cannot be decompressed: ${why}`);
  }

  #end(payload: Uint8Array): number {
    const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
    const records = view.getBigUint64(EndOffset.records, true);
    const payloadBytes = view.getBigUint64(EndOffset.payloadBytes, true);
    if (records !== BigInt(this.#records) || payloadBytes !== BigInt(this.#payloadBytes)) {
      const what = `the end record counts ${records} records of ${payloadBytes} bytes, there were ${this.#records} of ${this.#payloadBytes}`;
      throw this.#wrongRecord('COUNT', what);
    }
    this.#digestHex = this.#digest.digest('hex');
    if (Buffer.from(payload.subarray(EndOffset.digest)).toString('hex') !== this.#digestHex) {
      throw this.#wrongRecord(
        'DIGEST',
        'the digest over all records is not that of the end record: one was replaced',
      );
    }
    this.#state = 'done';
    return 0;
  }

  #truncated(): EnvelopeError {
    const offset = this.#offset + this.#assembler.held;
    const missing = this.#assembler.missing;
    const inRecords = this.#state === 'recordHeader' || this.#state === 'payload';
    const what = `the blob stops here, at least ${missing} bytes before its end: copy or save it again`;
    const record = inRecords ? this.#records : undefined;
    return new EnvelopeError('DEVSTATE_E_ENVELOPE_TRUNCATED', what, { offset, record });
  }

  #wrong(code: WrongCode, message: string): EnvelopeError {
    return new EnvelopeError(`DEVSTATE_E_ENVELOPE_${code}`, message, { offset: this.#offset });
  }

  #wrongRecord(code: WrongCode, message: string): EnvelopeError {
    const where = { offset: this.#recordOffset, record: this.#records };
    return new EnvelopeError(`DEVSTATE_E_ENVELOPE_${code}`, message, where);
  }
}

type WithoutPrefix<Code> = Code extends `DEVSTATE_E_ENVELOPE_${infer Name}` ? Name : never;
type WrongCode = WithoutPrefix<EnvelopeErrorCode>;

/** The error for a mandatory record whose type its owner (a format, or the envelope) does not know. */
function unknownRecord(
  type: number,
  owner: string,
  where: { offset: number; record: number },
): EnvelopeError {
  const what = `${owner} has no record type 0x${type.toString(16).padStart(8, '0')}, and it is not optional: update devstate`;
  return new EnvelopeError('DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN', what, where);
}

/**
 * What a format does with a record of a type it does not know: nothing if the record is OPTIONAL,
 * else DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN.
 * @param format the format's name, for the error
 */
export function skipUnknownRecord(record: DecodedRecord, format: string): void {
  if ((record.flags & RecordFlag.optional) !== 0) return;
  throw unknownRecord(record.type, format, { offset: record.offset, record: record.sequence });
}

/** Decodes a whole blob that lies in memory; its records' payloads are views of `blob`. */
export function decodeEnvelope(
  blob: Uint8Array,
  options?: DecoderOptions,
): { header: EnvelopeHeader; records: DecodedRecord[]; summary: EnvelopeSummary } {
  let header: EnvelopeHeader | undefined;
  const records: DecodedRecord[] = [];
  const callbacks = {
    onHeader: (decoded: EnvelopeHeader) => {
      header = decoded;
    },
    onRecord: (record: DecodedRecord) => {
      records.push(record);
    },
  };
  const decoder = new EnvelopeDecoder(callbacks, options);
  decoder.push(blob);
  const summary = decoder.finish();
  if (header === undefined) throw new DevstateError('DEVSTATE_E_INTERNAL', 'a complete blob had no header');
  return { header, records, summary };
}
