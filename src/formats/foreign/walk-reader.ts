// SPDX-License-Identifier: Apache-2.0
/** A reading of content by a walk: a generator that follows the bytes as they are pushed, and a tree of what it finds. */
import type { FieldMap } from '../fields.js';
import type { ContentError, ContentKind, ContentReader, ContentReport } from './content.js';
import { StreamDefect } from './defect.js';
import { Nesting } from './nested-content.js';
import { type Pull, PushedInput } from './pushed-input.js';
import { damaged } from './section-context.js';
import { SectionTree } from './section-tree.js';
import { FIRST_BYTES, hex } from './text.js';

/** What a walk works with. */
export interface WalkContext {
  readonly input: PushedInput;
  readonly tree: SectionTree;
  /** What is said of the content as a whole. */
  readonly fields: FieldMap;
  readonly nesting: Nesting;
}

export interface ContentWalk {
  readonly input: PushedInput;
  readonly tree: SectionTree;
  readonly fields: FieldMap;
  /** Follows the bytes to their end. What it cannot follow ends it with a `StreamDefect`. */
  run(): Pull<void>;
}

/** A kind that needs nothing but a walk. */
export function walkedKind({
  walk,
  ...kind
}: Omit<ContentKind, 'read' | 'prepare'> & { walk(context: WalkContext): Pull<void> }): ContentKind {
  return {
    ...kind,
    read: ({ offset = 0, extraction, kinds = [] }) => {
      const context = {
        input: new PushedInput(offset),
        tree: new SectionTree(),
        fields: {},
        // Content within content within content is not looked into: each level would hold bytes of its own.
        nesting: new Nesting(
          kinds.filter(({ name }) => name !== kind.name),
          extraction,
        ),
      };
      return new WalkReader(kind.name, { ...context, run: () => wholeWalk(context, walk) });
    },
  };
}

function* wholeWalk(context: WalkContext, walk: (context: WalkContext) => Pull<void>): Pull<void> {
  yield* walk(context);
  const { input } = context;
  if ((yield* input.reach(1)) > 0) throw damaged(input.offset, 'more bytes follow the end');
}

export class WalkReader implements ContentReader {
  readonly #kind: string;
  readonly #walk: ContentWalk;
  readonly #steps: Pull<void>;
  #size = 0;
  #error: ContentError | null = null;
  /** Where the walk has stopped before the end, and the first bytes from there. */
  #rest: { readonly offset: number; first: Buffer } | undefined;

  constructor(kind: string, walk: ContentWalk) {
    this.#kind = kind;
    this.#walk = walk;
    this.#steps = walk.run();
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
    const { input, tree, fields } = this.#walk;
    const end = input.origin + this.#size;
    const rest = this.#rest;
    if (rest !== undefined && rest.offset < end) {
      tree.begin(null, rest.offset).first = hex(rest.first);
      tree.end(end);
    }
    return { kind: this.#kind, size: this.#size, fields, sections: tree.sections, error: this.#error };
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
