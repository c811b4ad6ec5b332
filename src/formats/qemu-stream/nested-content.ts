// SPDX-License-Identifier: Apache-2.0
/** Content within the stream: state of a device or a helper, extracted and looked into as its bytes pass by. */
import type { ContentKind, ContentReader, ContentReport, Extraction } from '../foreign/content.js';
import { FIRST_BYTES, hex } from './text.js';

/** What is to be done with content that is found within. */
export interface NestedOptions {
  readonly kinds: readonly ContentKind[];
  readonly extraction: Extraction | undefined;
}

/** One piece of content whose bytes come in order, if not at once. */
export class NestedContent {
  /** The name that it is extracted under. */
  readonly extract: string;
  readonly #kinds: readonly ContentKind[];
  readonly #options: { readonly offset: number; readonly extraction?: Extraction };
  readonly #probeLength: number;
  readonly #file: ReturnType<Extraction['begin']> | undefined;
  /** The first bytes, until it is clear what they are the first bytes of. */
  #probe: Buffer = Buffer.alloc(0);
  #reader: ContentReader | undefined;
  #decided = false;

  /** @param offset what the offsets in its report count from */
  constructor(extract: string, offset: number, { kinds, extraction }: NestedOptions) {
    this.extract = extract;
    this.#kinds = kinds;
    this.#options = extraction === undefined ? { offset } : { offset, extraction };
    this.#probeLength = kinds.reduce((length, kind) => Math.max(length, kind.probeLength), FIRST_BYTES);
    this.#file = extraction?.begin(extract);
  }

  push(bytes: Uint8Array): void {
    this.#file?.write(bytes);
    if (this.#decided) this.#reader?.push(bytes);
    else {
      this.#probe = Buffer.concat([this.#probe, bytes]);
      if (this.#probe.length >= this.#probeLength) this.#decide();
    }
  }

  /** No more bytes come: what was found, or the first bytes of what nobody knows. Once. */
  finish(): { content: ContentReport | null; first: string | null } {
    if (!this.#decided) this.#decide();
    this.#file?.end();
    const content = this.#reader?.finish() ?? null;
    return { content, first: content === null ? hex(this.#probe) : null };
  }

  #decide(): void {
    this.#decided = true;
    const probe = this.#probe;
    const kind = this.#kinds.find((kind) => kind.matches(probe.subarray(0, kind.probeLength)));
    this.#reader = kind?.read({ ...this.#options, kinds: this.#kinds });
    this.#reader?.push(probe);
    this.#probe = probe.subarray(0, FIRST_BYTES);
  }
}
