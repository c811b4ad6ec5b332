// SPDX-License-Identifier: Apache-2.0
/** What is wrong with a blob, and where. */
import { DevstateError, type ErrorCode } from '../../errors.js';

/** The part of {@link ErrorCode} that names a defect of an envelope. */
export type EnvelopeErrorCode = Extract<ErrorCode, `DEVSTATE_E_ENVELOPE_${string}`>;

/** A blob that is not a whole and sound envelope, or one that this reader may not load. */
export class EnvelopeError extends DevstateError {
  /** Offset in the blob, in bytes, of the element that is wrong. */
  readonly offset: number;
  /** Index of the record that is wrong, counted from 0; undefined in the header. */
  readonly record: number | undefined;

  constructor(
    code: EnvelopeErrorCode,
    message: string,
    where: { offset: number; record?: number | undefined },
    cause?: unknown,
  ) {
    const record = where.record === undefined ? '' : `record ${where.record}, `;
    super(code, `${message} (${record}offset ${where.offset})`, cause === undefined ? {} : { cause });
    this.name = 'EnvelopeError';
    this.offset = where.offset;
    this.record = where.record;
  }
}
