// SPDX-License-Identifier: Apache-2.0
/** Reading of content of any kind, in chunks that are reused, as those of a file reader are. */
import type { ContentKind, ContentReaderOptions, ContentReport } from '../../../src/formats/index.js';

export interface ChunkedOptions extends ContentReaderOptions {
  /** Lengths of the chunks; the last one is the rest. Default: everything at once. */
  readonly chunks?: Iterable<number>;
}

export function readWith(
  kind: ContentKind,
  bytes: Uint8Array,
  { chunks = [], ...options }: ChunkedOptions = {},
): ContentReport {
  const reader = kind.read(options);
  const buffer = Buffer.alloc(bytes.length);
  let at = 0;
  const push = (length: number) => {
    const chunk = buffer.subarray(0, length);
    chunk.set(bytes.subarray(at, at + length));
    reader.push(chunk);
    chunk.fill(0xee);
    at += length;
  };
  for (const length of chunks) if (at + length <= bytes.length) push(length);
  push(bytes.length - at);
  return reader.finish();
}
