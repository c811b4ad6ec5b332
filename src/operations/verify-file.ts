// SPDX-License-Identifier: Apache-2.0
/** Whether a blob is intact and complete. */

import {
  EnvelopeDecoder,
  EnvelopeError,
  findFormat,
  formatVersionText,
  SIGNATURE_LENGTH,
} from '../formats/index.js';
import type { InputFile, ReadProgress } from './files/input.js';
import { whatItIs } from './files/wrong-file.js';

export interface VerifyResult {
  /** Every byte is as it was written, and none is missing. */
  readonly intact: boolean;
  /** Name of the format, or its UUID, and its version; null if the header is not whole. */
  readonly format: string | null;
  /** Bytes read. */
  readonly size: number;
  /** Whole records before the defect, or all of them. */
  readonly records: number;
  /** SHA-256 of the end record, hexadecimal; null unless it is intact. */
  readonly digest: string | null;
  readonly error: {
    readonly code: string;
    readonly message: string;
    /** First byte of what is wrong; null if it is not to be told. */
    readonly offset: number | null;
    readonly record: number | null;
  } | null;
}

/** Knows no format: it checks what the envelope vouches for. @throws DEVSTATE_E_INPUT */
export async function verifyFile(
  input: Pick<InputFile, 'chunks'> & Partial<Pick<InputFile, 'head'>>,
  progress?: ReadProgress,
): Promise<VerifyResult> {
  const found = { size: 0, records: 0, format: null as string | null, digest: null as string | null };
  const decoder = new EnvelopeDecoder(
    {
      onHeader: ({ format, version }) => {
        found.format = `${findFormat(format)?.name ?? format} ${formatVersionText(version)}`;
      },
      onRecord: () => {
        found.records++;
      },
    },
    { lenient: true },
  );
  try {
    for await (const chunk of input.chunks(progress)) {
      found.size += chunk.length;
      decoder.push(chunk);
    }
    found.digest = decoder.finish().digest;
    return { intact: true, ...found, error: null };
  } catch (error) {
    if (!(error instanceof EnvelopeError)) throw error;
    const { code, offset = null, record = null } = error;
    const what = input.head === undefined ? undefined : whatItIs(input.head(SIGNATURE_LENGTH), code);
    const message = what === undefined ? error.message : `it ${what}`;
    return { intact: false, ...found, error: { code, message, offset, record } };
  }
}
