// SPDX-License-Identifier: Apache-2.0
/** Reading of content in tests: in chunks, from a file or a pipe, with what was extracted. */
import type {
  ContentKind,
  ContentReaderOptions,
  ContentReport,
  ContentSection,
} from '../../../src/formats/index.js';
import { qemuStreamKind } from '../../../src/formats/qemu-stream/index.js';
import { inMemory } from './streams.js';

export interface ReadOptions extends ContentReaderOptions {
  /** Lengths of the chunks; the last one is the rest. Default: everything at once. */
  readonly chunks?: Iterable<number>;
  /** Whether it comes through a pipe, so that its end cannot be looked at first. Default: false. */
  readonly pipe?: boolean;
}

/** The report on a stream. Chunks are reused, as those of a file reader are. */
export function read(
  bytes: Uint8Array,
  { chunks = [], pipe = false, ...options }: ReadOptions = {},
): ContentReport {
  const kind = pipe ? qemuStreamKind : qemuStreamKind.prepare(inMemory(bytes));
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

/** Content that begins with `MARK`, for the tests: its report has its last byte. */
export const markKind: ContentKind = {
  name: 'mark',
  title: 'what tests put in other content',
  probeLength: 4,
  matches: (first) => Buffer.from(first).toString('latin1') === 'MARK',
  read({ offset = 0 }) {
    let size = 0;
    let last = 0;
    return {
      push(chunk) {
        size += chunk.length;
        last = chunk.at(-1) ?? last;
      },
      finish: () => ({ kind: 'mark', size, fields: { offset, last }, sections: [], error: null }),
    };
  },
};

/** Collects what is extracted, by name. */
export class Extracted {
  readonly files = new Map<string, Buffer>();
  /** Names of files that were begun and not ended. */
  readonly open = new Set<string>();

  begin(name: string) {
    const parts: Buffer[] = [];
    this.open.add(name);
    return {
      write: (bytes: Uint8Array) => {
        parts.push(Buffer.from(bytes));
      },
      end: () => {
        this.open.delete(name);
        this.files.set(name, Buffer.concat(parts));
      },
    };
  }
}

export const sumOfSizes = (sections: readonly ContentSection[]) =>
  sections.reduce((sum, { size }) => sum + size, 0);

/** Every section at every level. */
export function* allSections(sections: readonly ContentSection[]): Generator<ContentSection> {
  for (const section of sections) {
    yield section;
    yield* allSections(section.sections);
  }
}
