// SPDX-License-Identifier: Apache-2.0
/**
 * A blob of one format in, a blob of another out, as the bytes come: memory is bounded by a record and what the
 * converters hold. With no converters the records pass as they are, which still checks the blob and writes it anew.
 */
import { asDevstateError, DevstateError } from '../../errors.js';
import { type DecodedRecord, EnvelopeDecoder } from '../envelope/decoder.js';
import { EnvelopeEncoder } from '../envelope/encoder.js';
import { EnvelopeError } from '../envelope/envelope-error.js';
import type { EnvelopeHeader } from '../envelope/header.js';
import { EnvelopeRecord, FORMAT_RECORD_TYPES, RecordFlag } from '../envelope/layout.js';
import { formatVersionText } from '../registry.js';
import { newUuid } from '../uuid.js';
import type { Converter, FormatRecord, RecordConverter } from './converter.js';
import { type Kept, KeptRecords, KeptRole, RecordKeeper } from './kept-record.js';
import type { FormatPoint } from './path.js';

/** The bits of a record's flags that are the format's own. */
const FORMAT_FLAGS_MASK = 0xffff_0000;

export interface BlobConverterOptions {
  /** Chooses the way, by what the blob says it is. Throw to refuse it. */
  choose(header: EnvelopeHeader): readonly Converter[];
  /** Who converts. */
  producer: EnvelopeHeader['producer'];
  /** Features of the blob that is written, by what the one that is read says. Default: none. */
  features?(header: EnvelopeHeader): readonly string[];
  /** Takes the blob that is written, piece by piece; the bytes are valid until it returns. */
  write(bytes: Uint8Array): void;
}

interface Stage {
  readonly converter: Converter;
  readonly records: RecordConverter;
}

export class BlobConverter {
  readonly #options: BlobConverterOptions;
  readonly #decoder: EnvelopeDecoder;
  readonly #kept = new KeptRecords();
  readonly #keeper = new RecordKeeper();
  #stages: Stage[] = [];
  #encoder: EnvelopeEncoder | undefined;
  #written: EnvelopeHeader | undefined;

  constructor(options: BlobConverterOptions) {
    this.#options = options;
    this.#decoder = new EnvelopeDecoder({
      onHeader: (header) => this.#begin(header),
      onRecord: (record) => this.#record(record),
    });
  }

  /** The header that is written; undefined before that of the input has come. */
  get header(): EnvelopeHeader | undefined {
    return this.#written;
  }

  /** Takes the next bytes; they are not kept after the call. */
  push(chunk: Uint8Array): void {
    this.#decoder.push(chunk);
  }

  /** No more bytes come: writes the rest of the blob. */
  finish(): void {
    const { length, records } = this.#decoder.finish();
    this.#kept.end({ offset: length, record: records });
    for (const [index, stage] of this.#stages.entries()) {
      for (const record of stage.records.end()) this.#convert(record, index + 1);
    }
    this.#options.write(this.#writer.end());
  }

  get #writer(): EnvelopeEncoder {
    if (this.#encoder !== undefined) return this.#encoder;
    throw new DevstateError('DEVSTATE_E_INTERNAL', 'records before the header');
  }

  #begin(header: EnvelopeHeader): void {
    const way = this.#options.choose(header);
    requireStart(way, header);
    const last = way.at(-1);
    const features = [...(this.#options.features?.(header) ?? [])];
    let written: EnvelopeHeader = { ...header, features };
    if (last !== undefined) {
      const names = [way[0]!.from.name, formatVersionText(header.version)];
      written = {
        ...written,
        format: last.to.uuid,
        version: last.to.version,
        producer: this.#options.producer,
        stream: newUuid(),
        other: { ...header.other, converted_from: names.join(' ') },
      };
    }
    let given = header;
    for (const converter of way) {
      this.#stages.push({ converter, records: converter.begin(given) });
      given = { ...given, format: converter.to.uuid, version: converter.to.version };
    }
    this.#written = written;
    this.#encoder = new EnvelopeEncoder(written);
    this.#options.write(this.#encoder.header());
  }

  #record(record: DecodedRecord): void {
    try {
      if (record.type >= FORMAT_RECORD_TYPES) {
        this.#convert(
          {
            type: record.type,
            optional: (record.flags & RecordFlag.optional) !== 0,
            formatFlags: (record.flags & FORMAT_FLAGS_MASK) >>> 0,
            payload: record.payload,
          },
          0,
        );
      } else if (record.type === EnvelopeRecord.kept) this.#unkeep(record);
      else this.#pass(record);
    } catch (error) {
      if (error instanceof EnvelopeError) throw error;
      const { code, message } = asDevstateError(error);
      throw new DevstateError(code, `${message} (record ${record.sequence}, offset ${record.offset})`, {
        cause: error,
      });
    }
  }

  /** A record of the envelope's own: bytes of a foreign stream mean nothing once the format is another. */
  #pass({ type, flags, payload, sequence, offset }: DecodedRecord): void {
    const optional = flags & RecordFlag.optional;
    if (this.#stages.length > 0 && optional === 0) {
      const what = `the envelope's record type ${type} cannot be converted`;
      throw new EnvelopeError('DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN', what, { offset, record: sequence });
    }
    this.#write(type, optional, payload);
  }

  /** A kept record whose format is now being read, or will be on the way, or is written, becomes a record of it again. */
  #unkeep({ payload, offset, sequence }: DecodedRecord): void {
    const kept = this.#kept.take(payload, { offset, record: sequence });
    if (kept === undefined) return;
    if (kept.role === KeptRole.original) {
      this.#takeOriginal(kept);
      return;
    }
    const { point, record } = kept;
    const points = [...this.#stages.map(({ converter }) => fromPoint(converter)), this.#endPoint()];
    const stage = points.findIndex(({ uuid, major }) => uuid === point.uuid && major === point.major);
    if (stage < 0) this.#writeKept(record, point);
    else this.#convert(record, stage);
  }

  /** Given to the converter that writes records of its format, if there is one on the way. */
  #takeOriginal({ point, record }: Kept): void {
    const stage = this.#stages.find(
      ({ converter: { to } }) => to.uuid === point.uuid && to.version.major === point.major,
    );
    if (stage?.records.original === undefined) this.#writeKept(record, point, KeptRole.original);
    else stage.records.original(record);
  }

  #endPoint(): FormatPoint {
    const { format, version } = this.#written!;
    return { uuid: format, major: version.major };
  }

  /** Takes a record through the converters from number `index` on. */
  #convert(record: FormatRecord, index: number): void {
    const stage = this.#stages[index];
    if (stage === undefined) {
      const flags = (record.optional ? RecordFlag.optional : 0) | (record.formatFlags ?? 0);
      this.#write(record.type, flags >>> 0, record.payload);
      return;
    }
    const converted = stage.records.record(record);
    if (converted !== undefined) {
      if (stage.records.isPartial?.(record) === true) {
        this.#writeKept(record, fromPoint(stage.converter), KeptRole.original);
      }
      for (const next of converted) this.#convert(next, index + 1);
    } else if (record.optional) this.#writeKept(record, fromPoint(stage.converter));
    else {
      const type = record.type.toString(16).padStart(8, '0');
      throw new DevstateError(
        'DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN',
        `${stage.converter.from.name} has no record type 0x${type} known here, and it is not optional: update devstate`,
      );
    }
  }

  #writeKept(record: FormatRecord, point: FormatPoint, role: KeptRole = KeptRole.record): void {
    for (const payload of this.#keeper.keep(record, point, role)) {
      this.#write(EnvelopeRecord.kept, RecordFlag.optional, payload);
    }
  }

  #write(type: number, flags: number, payload: Uint8Array): void {
    for (const part of this.#writer.record(type, flags, payload)) this.#options.write(part);
  }
}

/** A way may have been chosen by what the blob was said to be. @throws DEVSTATE_E_FORMAT_VERSION if it is something else */
function requireStart([first]: readonly Converter[], { format, version }: EnvelopeHeader): void {
  if (first === undefined || (first.from.uuid === format && first.from.major === version.major)) return;
  const { name, uuid, major } = first.from;
  const is = uuid === format ? `${name} ${formatVersionText(version)}` : `of format ${format}`;
  const message = `the blob is ${is}, this converter reads ${name} ${major}: update devstate or choose another way`;
  throw new DevstateError('DEVSTATE_E_FORMAT_VERSION', message);
}

function fromPoint({ from }: Converter): FormatPoint {
  return from;
}
