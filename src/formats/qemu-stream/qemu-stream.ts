// SPDX-License-Identifier: Apache-2.0
/** QEMU's migration stream, as `migrate file:PATH` or `migrate exec:cat>PATH` write it, as a kind of content. */
import type {
  ContentError,
  ContentKind,
  ContentReader,
  ContentReaderOptions,
  ContentReport,
} from '../foreign/content.js';
import { FILE_HEADER_LENGTH, QEMU_VM_FILE_MAGIC, QEMU_VM_FILE_VERSION } from './constants.js';
import { StreamDefect } from './defect.js';
import { Nesting } from './nested-content.js';
import type { Pull } from './pushed-input.js';
import { StreamWalk } from './stream-walk.js';
import { FIRST_BYTES, hex } from './text.js';
import { type ContentFile, readVmDescription, type VmDescription } from './vm-description.js';

/** A kind whose reader reads better when it has seen the end of the content first. */
export interface PreparedKind extends ContentKind {
  /** The kind for one file whose content `matches`. */
  prepare(file: ContentFile): ContentKind;
}

export const qemuStreamKind: PreparedKind = {
  name: 'qemu-stream',
  title: 'QEMU migration stream',
  probeLength: FILE_HEADER_LENGTH,
  matches(first) {
    if (first.length < FILE_HEADER_LENGTH) return false;
    const view = new DataView(first.buffer, first.byteOffset, first.length);
    return view.getUint32(0) === QEMU_VM_FILE_MAGIC && view.getUint32(4) === QEMU_VM_FILE_VERSION;
  },
  read: (options) => new QemuStreamReader(options, undefined),
  prepare(file) {
    const description = readVmDescription(file) ?? null;
    return { ...qemuStreamKind, read: (options) => new QemuStreamReader(options, description) };
  },
};

class QemuStreamReader implements ContentReader {
  readonly #walk: StreamWalk;
  readonly #steps: Pull<void>;
  readonly #offset: number;
  #size = 0;
  #error: ContentError | null = null;
  /** Where the walk has stopped before the end, and the first bytes from there. */
  #rest: { readonly offset: number; first: Buffer } | undefined;

  constructor(options: ContentReaderOptions, description: VmDescription | null | undefined) {
    this.#offset = options.offset ?? 0;
    // Streams within streams are not looked into: each level would hold bytes of its own.
    const kinds = (options.kinds ?? []).filter(({ name }) => name !== qemuStreamKind.name);
    const nesting = new Nesting(kinds, options.extraction);
    this.#walk = new StreamWalk({ offset: this.#offset, description, nesting });
    this.#steps = this.#walk.run();
  }

  push(chunk: Uint8Array): void {
    this.#size += chunk.length;
    if (this.#error === null) {
      this.#walk.input.feed(chunk);
      this.#step();
      this.#walk.input.settle();
    } else this.#keepFirst(chunk);
  }

  finish(): ContentReport {
    this.#walk.input.end();
    if (this.#error === null) this.#step();
    const { tree, fields } = this.#walk;
    const end = this.#offset + this.#size;
    const rest = this.#rest;
    if (rest !== undefined && rest.offset < end) {
      tree.begin(null, rest.offset).first = hex(rest.first);
      tree.end(end);
    }
    return {
      kind: qemuStreamKind.name,
      size: this.#size,
      fields,
      sections: tree.sections,
      error: this.#error,
    };
  }

  #step(): void {
    try {
      this.#steps.next();
    } catch (error) {
      if (!(error instanceof StreamDefect)) throw error;
      this.#fail(error);
    }
  }

  #fail(defect: StreamDefect): void {
    const { input, tree } = this.#walk;
    const { outermost } = tree;
    const where =
      outermost === undefined
        ? ''
        : ` (in the section ${outermost.name ?? 'that begins'} at offset ${outermost.offset})`;
    const truncated = defect.code === 'DEVSTATE_E_CONTENT_TRUNCATED';
    const advice = truncated ? ' before its end: copy or save it again' : '';
    this.#error = { code: defect.code, message: `${defect.message}${advice}${where}`, offset: defect.offset };
    // What was seen of a truncated element belongs to it.
    const stopped = truncated ? input.fedEnd : input.offset;
    tree.abandon(stopped);
    this.#rest = { offset: stopped, first: Buffer.alloc(0) };
    if (!truncated) this.#keepFirst(input.view(Math.min(input.available, FIRST_BYTES)));
  }

  #keepFirst(chunk: Uint8Array): void {
    const rest = this.#rest!;
    if (rest.first.length < FIRST_BYTES) {
      rest.first = Buffer.concat([rest.first, chunk.subarray(0, FIRST_BYTES - rest.first.length)]);
    }
  }
}
