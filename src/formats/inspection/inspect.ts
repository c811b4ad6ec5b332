// SPDX-License-Identifier: Apache-2.0
/**
 * Says what a file holds without loading it: one stable JSON value, gathered from a stream with bounded memory.
 * Nothing is guessed: what is not known is reported as unknown, with its length and first bytes.
 */
import type { Crc32c } from '../envelope/crc32c.js';
import { hasMagic } from '../envelope/header.js';
import { HEADER_INVARIANT_LENGTH } from '../envelope/layout.js';
import type { ContentFile, ContentKind, ContentReader, Extraction } from '../foreign/content.js';
import { detectContent, probeLengthOf } from '../foreign/index.js';
import { FIRST_BYTES, hex } from '../foreign/text.js';
import { type Recognised, recognise, SIGNATURE_LENGTH } from '../signatures/index.js';
import { envelopeKind } from './envelope-kind.js';
import { EnvelopeReader } from './envelope-reader.js';
import type { FormatDescription, Inspection } from './types.js';

export interface InspectOptions {
  /** Formats that can explain their records. */
  readonly formats?: readonly FormatDescription[];
  /** Kinds of content that are not ours, the first that matches is taken. Default: none. */
  readonly kinds?: readonly ContentKind[];
  /** The file that the chunks come from, if it is one. */
  readonly file?: ContentFile | undefined;
  /** Takes what is found inside. */
  readonly extraction?: Extraction | undefined;
  /** The checksum's implementation. */
  readonly crc32c?: Crc32c;
}

/**
 * Inspects a blob, or content of another kind. It never rejects because of what it reads: a defect is reported as
 * `error`, beside everything that came before it. It rejects with whatever `chunks` throws.
 * @param chunks the bytes, in pieces of any size; read to their end
 */
export async function inspect(
  chunks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  options: InspectOptions = {},
): Promise<Inspection> {
  const reader = new InputReader(options);
  for await (const chunk of chunks) reader.push(chunk);
  return reader.finish();
}

interface Reading {
  push(chunk: Uint8Array): void;
  finish(): Inspection;
}

/** Holds the first bytes until it is clear what they are the first bytes of. */
class InputReader implements Reading {
  readonly #options: InspectOptions;
  readonly #probeLength: number;
  #probe: Uint8Array = new Uint8Array(0);
  #reading: Reading | undefined;

  constructor(options: InspectOptions) {
    this.#options = options;
    this.#probeLength = Math.max(
      HEADER_INVARIANT_LENGTH,
      SIGNATURE_LENGTH,
      probeLengthOf(options.kinds ?? []),
    );
  }

  push(chunk: Uint8Array): void {
    if (this.#reading !== undefined) {
      this.#reading.push(chunk);
      return;
    }
    this.#probe = Buffer.concat([this.#probe, chunk]);
    if (this.#probe.length >= this.#probeLength) this.#begin();
  }

  finish(): Inspection {
    return (this.#reading ?? this.#begin()).finish();
  }

  #begin(): Reading {
    const probe = this.#probe;
    const { kinds = [], file, formats = [], extraction } = this.#options;
    const kind = hasMagic(probe) ? undefined : detectContent(probe, kinds);
    // Content that is not ours may hold blobs that are.
    const within = [envelopeKind(formats), ...kinds];
    const foreign = kind === undefined && !hasMagic(probe) ? recognise(probe, file) : undefined;
    // A word may as well be the beginning of anything.
    const isWord = foreign?.signature.name === 'text' && probe.length < HEADER_INVARIANT_LENGTH;
    const recognised = isWord ? undefined : foreign;
    this.#reading =
      recognised !== undefined
        ? recognisedReading(recognised, probe)
        : kind === undefined
          ? new EnvelopeReader({ ...this.#options, kinds: within })
          : contentReading(
              kind,
              kind.prepare !== undefined && file !== undefined ? kind.prepare(file) : kind,
              {
                kinds: within,
                ...(extraction === undefined ? {} : { extraction }),
              },
            );
    this.#reading.push(probe);
    return this.#reading;
  }
}

function contentReading(
  { title }: ContentKind,
  kind: ContentKind,
  options: Parameters<ContentKind['read']>[0],
): Reading {
  const reader: ContentReader = kind.read(options);
  return {
    push: (chunk) => reader.push(chunk),
    finish: () => {
      const content = reader.finish();
      const { size, error } = content;
      return {
        kind: 'content',
        size,
        title,
        content,
        error: error === null ? null : { ...error, record: null },
      };
    },
  };
}

/** What a file is that holds no state: nothing behind its first bytes is looked into. */
function recognisedReading({ signature, fields }: Recognised, probe: Uint8Array): Reading {
  const { name, title, group } = signature;
  const first = hex(probe.subarray(0, FIRST_BYTES));
  let size = 0;
  return {
    push: (chunk) => {
      size += chunk.length;
    },
    finish: () => {
      const section = {
        name: null,
        offset: 0,
        size,
        fields: {},
        first,
        sections: [],
        extract: null,
        content: null,
      };
      const content = { kind: name, size, fields, sections: [section], error: null };
      return { kind: 'content', size, title: withoutArticle(title), recognised: group, content, error: null };
    },
  };
}

function withoutArticle(title: string): string {
  return title.replace(/^(an?|the) /, '');
}
