// SPDX-License-Identifier: Apache-2.0
/** How a file of others is recognised by its first bytes. One row of a table each; see `index.ts`. */
import type { FieldMap } from '../fields.js';
import type { ContentFile } from '../foreign/content.js';

/** What a file is for, and so what to do with it here. */
export type SignatureGroup =
  /** A disk: its bytes are what a guest or an application has stored. */
  | 'disk'
  /** The memory or the state of a whole VM or process. */
  | 'machine'
  /** Bytes of something else, compressed. */
  | 'compressed'
  /** Files in a file. */
  | 'archive'
  | 'program'
  | 'text'
  | 'other';

export interface Signature {
  /** Lower case, words joined by `-`. */
  readonly name: string;
  /** For people, with its article: `a qcow2 disk image`. */
  readonly title: string;
  readonly group: SignatureGroup;
  /**
   * What the first bytes say; undefined if the file is something else.
   * @param head the first bytes, {@link SIGNATURE_LENGTH} of them or all there are
   * @param file the whole of it, if it can be read
   */
  match(head: Buffer, file?: ContentFile): FieldMap | undefined;
}

/** First bytes that are enough for every row: btrfs has its mark at 64 KiB + 64. */
export const SIGNATURE_LENGTH = 68 * 1024;

/** A row for what is recognised by fixed bytes. @param magic text of Latin-1 characters */
export function magicRow(
  group: SignatureGroup,
  name: string,
  title: string,
  magic: string,
  offset = 0,
  describe: (head: Buffer, file?: ContentFile) => FieldMap = () => ({}),
): Signature {
  const bytes = Buffer.from(magic, 'latin1');
  return {
    name,
    title,
    group,
    match: (head, file) =>
      head.subarray(offset, offset + bytes.length).equals(bytes) ? describe(head, file) : undefined,
  };
}

/** Numbers of a header that may be cut off: 0 behind the end. */
export class HeadReader {
  readonly #head: Buffer;
  constructor(head: Buffer) {
    this.#head = head;
  }
  u8(at: number): number {
    return this.#head[at] ?? 0;
  }
  u16(at: number): number {
    return at + 2 <= this.#head.length ? this.#head.readUInt16LE(at) : 0;
  }
  u32(at: number): number {
    return at + 4 <= this.#head.length ? this.#head.readUInt32LE(at) : 0;
  }
  u64(at: number): number {
    return at + 8 <= this.#head.length ? Number(this.#head.readBigUInt64LE(at)) : 0;
  }
  u16be(at: number): number {
    return at + 2 <= this.#head.length ? this.#head.readUInt16BE(at) : 0;
  }
  u32be(at: number): number {
    return at + 4 <= this.#head.length ? this.#head.readUInt32BE(at) : 0;
  }
  u64be(at: number): number {
    return at + 8 <= this.#head.length ? Number(this.#head.readBigUInt64BE(at)) : 0;
  }
  /** Characters up to a NUL, at most `length`. */
  text(at: number, length: number): string {
    const bytes = this.#head.subarray(at, at + length);
    const end = bytes.indexOf(0);
    return (end < 0 ? bytes : bytes.subarray(0, end)).toString('utf8');
  }
}
