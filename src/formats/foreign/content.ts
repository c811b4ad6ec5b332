// SPDX-License-Identifier: Apache-2.0
/**
 * What inspection needs to know of content that is not ours: device state and migration streams found in the wild.
 * Each kind recognises itself by its first bytes and then takes the bytes as they come, with bounded memory.
 * Nothing is guessed: what is not known is said to be unknown, with its length and first bytes.
 */
import type { FieldMap } from '../fields.js';

/** A part of some content: a contiguous range of its bytes. Siblings do not overlap and are in order. */
export interface ContentSection {
  /** What it is, in the words of its own specification; null if this version does not know. */
  readonly name: string | null;
  /** First byte, counted from the start of the whole input. */
  readonly offset: number;
  /** Bytes, everything inside included. */
  readonly size: number;
  readonly fields: FieldMap;
  /** First bytes, hexadecimal, of what has no fields; else null. */
  readonly first: string | null;
  readonly sections: readonly ContentSection[];
  /** A name under which `--extract` writes the bytes (`[a-z0-9._-]+`), when they are content of their own; else null. */
  readonly extract: string | null;
  /** What the bytes are in themselves, if they are content of their own. */
  readonly content: ContentReport | null;
}

/** Where and why content is not whole and sound. */
export interface ContentError {
  /** A `DEVSTATE_E_…` code. */
  readonly code: string;
  readonly message: string;
  readonly offset: number | null;
}

/** What is found in content of one kind. */
export interface ContentReport {
  /** Name of the `ContentKind`, such as `qemu-stream`. */
  readonly kind: string;
  /** Bytes. */
  readonly size: number;
  readonly fields: FieldMap;
  /** Top level sections: their sizes add up to `size`, unless there is an `error`. */
  readonly sections: readonly ContentSection[];
  readonly error: ContentError | null;
}

/** Takes bytes that were found inside, for `--extract`. */
export interface Extraction {
  /** Opens a file of this name for the bytes that follow; the name is made unique by the taker. */
  begin(name: string): { write(bytes: Uint8Array): void; end(): void };
}

/** One reading of some content. Throws nothing because of the content. */
export interface ContentReader {
  push(chunk: Uint8Array): void;
  /** No more bytes come. Once. */
  finish(): ContentReport;
}

export interface ContentReaderOptions {
  /** Where the content begins in the whole input: added to every offset that is reported. Default: 0. */
  readonly offset?: number;
  readonly extraction?: Extraction;
  /** What to look for in content within this content; default: none. */
  readonly kinds?: readonly ContentKind[];
}

/** Content that lies in a file, so that its end can be looked at first. */
export interface ContentFile {
  /** Bytes. */
  readonly size: number;
  /** The bytes at `offset`; `offset + length` is not beyond the end. */
  read(offset: number, length: number): Uint8Array;
}

/** A kind of content that shows by its first bytes what it is. */
export interface ContentKind {
  /** Lower case, words joined by `-`. */
  readonly name: string;
  /** A line for people: `QEMU migration stream`. */
  readonly title: string;
  /** Bytes that `matches` wants to see. */
  readonly probeLength: number;
  /**
   * Whether content that begins with `first` (of `probeLength` bytes, fewer if there are not so many) is of this kind.
   * Only by what cannot be there by chance: a magic number, or a structure that checks out over several fields.
   */
  matches(first: Uint8Array): boolean;
  read(options: ContentReaderOptions): ContentReader;
  /** The kind for one file whose content `matches`: its reader reads better when it has seen the end first. */
  prepare?(file: ContentFile): ContentKind;
}
