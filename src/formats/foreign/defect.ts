// SPDX-License-Identifier: Apache-2.0
/** What ends the walk over a stream before its end. */
import type { ErrorCode } from '../../errors.js';

/** The part of {@link ErrorCode} that names what is wrong with content of others. */
export type ContentErrorCode = Extract<ErrorCode, `DEVSTATE_E_CONTENT_${string}`>;

/** A stream that cannot be followed any further. Never leaves this folder: it becomes the report's `error`. */
export class StreamDefect extends Error {
  readonly code: ContentErrorCode;
  /** Where, counted from the start of the whole input, in bytes. */
  readonly offset: number;

  constructor(code: ContentErrorCode, message: string, offset: number) {
    super(message);
    this.code = code;
    this.offset = offset;
  }
}
