// SPDX-License-Identifier: Apache-2.0
/** Reading of content of any kind, in chunks that are reused, as those of a file reader are. */
import { FOREIGN_KINDS } from '../../../src/formats/foreign/index.js';
import type { ContentKind, ContentReaderOptions, ContentReport } from '../../../src/formats/index.js';
import { sumOfSizes } from '../qemu-stream/reading.js';
import { SAMPLES } from './samples.js';

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

export function kindNamed(name: string): ContentKind {
  const kind = FOREIGN_KINDS.find((one) => one.name === name);
  if (kind === undefined) throw new Error(`no kind ${name}`);
  return kind;
}
/** Every sample, with its kind. */
export const samples = [...SAMPLES].map(([name, bytes]) => ({ name, kind: kindNamed(name), bytes }));
/** Why a report cannot be of so many bytes: its top level sections are all of them, in order; undefined if it can. */
export function check(report: ContentReport, length: number): string | undefined {
  if (report.size !== length) return `size ${report.size}`;
  if (sumOfSizes(report.sections) !== length) return `the sections sum up to ${sumOfSizes(report.sections)}`;
  let end = 0;
  for (const { offset, size } of report.sections) {
    if (offset !== end) return `a section at ${offset} follows the end ${end}`;
    end = offset + size;
  }
  return undefined;
}
