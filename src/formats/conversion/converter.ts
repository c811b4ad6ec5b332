// SPDX-License-Identifier: Apache-2.0
/** What turns the records of one format into those of another. */
import type { EnvelopeHeader, FormatVersion } from '../envelope/header.js';
import type { Uuid } from '../uuid.js';

/** A record of a format, apart from how an envelope carries it. */
export interface FormatRecord {
  /** From 0x10000. */
  readonly type: number;
  /** A reader that does not know the type may skip it. */
  readonly optional: boolean;
  /** Bits 16 to 31 of the record's flags, in place: the format's own. Default: 0. */
  readonly formatFlags?: number;
  readonly payload: Uint8Array;
}

export interface Converter {
  /** What it reads: every minor version of this major version. */
  readonly from: { readonly uuid: Uuid; readonly name: string; readonly major: number };
  /** What it writes. */
  readonly to: { readonly uuid: Uuid; readonly name: string; readonly version: FormatVersion };
  /** What does not come through, a phrase each (`the health counters`); empty if it is loss-free. */
  readonly losses: readonly string[];
  /** Begins one conversion. @throws DevstateError when such a blob cannot be converted */
  begin(header: EnvelopeHeader): RecordConverter;
}

/** One conversion. A failure is a DevstateError that names what is wrong. */
export interface RecordConverter {
  /**
   * Takes the next record; its payload is valid until the records that are returned have been used.
   * @returns what can be written already; undefined if the type is not known here (it is then kept if it is optional,
   *   and refused if not)
   */
  record(record: FormatRecord): Iterable<FormatRecord> | undefined;
  /**
   * Whether a record that `record` took holds more than was taken of it, such as fields of a newer version: it is then
   * kept beside what comes of it. Default: none does.
   */
  isPartial?(record: FormatRecord): boolean;
  /**
   * A record of the format that is written, as it was before an earlier conversion took a part of it. It is to be
   * written in place of a record that says the same as that part; its payload is valid until the call returns.
   */
  original?(record: FormatRecord): void;
  /** All records have come, intact. @returns the rest */
  end(): Iterable<FormatRecord>;
}
