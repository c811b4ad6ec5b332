// SPDX-License-Identifier: Apache-2.0
/** Content within the stream: state of a device or a helper, extracted and looked into as its bytes pass by. */
import type { ContentKind, ContentReader, ContentReport, ContentSection, Extraction } from './content.js';
import { FIRST_BYTES, hex } from './text.js';

/** Pieces of content that are extracted and looked into; no machine has so many. */
const OPENED_MAX = 1024;
/** Characters of JSON that the reports on all of them may take; of a further one the sections are left out. */
const REPORTS_LENGTH = 4 * 1024 * 1024;

/** What is to be done with content that is found within. */
export class Nesting {
  readonly kinds: readonly ContentKind[];
  readonly extraction: Extraction | undefined;
  #opened = 0;
  #reportsLength = 0;

  constructor(kinds: readonly ContentKind[], extraction: Extraction | undefined) {
    this.kinds = kinds;
    this.extraction = extraction;
  }

  /**
   * Opens a piece of content; undefined if there were too many.
   * @param extract the name that it is extracted under
   * @param offset what the offsets in its report count from
   * @param limit bytes up to which it is looked into; a reader may hold much of what it is given
   */
  open(extract: string, offset: number, limit = Number.POSITIVE_INFINITY): NestedContent | undefined {
    return this.#opened++ < OPENED_MAX ? new NestedContent(extract, offset, limit, this) : undefined;
  }

  /** `report`, or what there is room for of it. */
  bounded(report: ContentReport): ContentReport {
    const { length } = JSON.stringify(report);
    if (this.#reportsLength + length > REPORTS_LENGTH) {
      return { ...report, fields: {}, sections: leftOut(report.sections) };
    }
    this.#reportsLength += length;
    return report;
  }
}

/** What was found: a report, or the first bytes of what is unknown, or of what is too large. */
export interface FoundContent {
  readonly content: ContentReport | null;
  readonly first: string | null;
}

/** One piece of content whose bytes come in order, if not at once. */
export class NestedContent {
  readonly extract: string;
  readonly #nesting: Nesting;
  readonly #options: { readonly offset: number; readonly extraction?: Extraction };
  readonly #probeLength: number;
  readonly #file: ReturnType<Extraction['begin']> | undefined;
  /** The first bytes, until it is clear what they are the first bytes of. */
  #probe: Buffer = Buffer.alloc(0);
  #reader: ContentReader | undefined;
  #decided = false;
  /** Bytes that may still be looked into. */
  #left: number;

  constructor(extract: string, offset: number, limit: number, nesting: Nesting) {
    const { kinds, extraction } = nesting;
    this.extract = extract;
    this.#nesting = nesting;
    this.#options = extraction === undefined ? { offset } : { offset, extraction };
    this.#probeLength = kinds.reduce((length, kind) => Math.max(length, kind.probeLength), FIRST_BYTES);
    this.#file = extraction?.begin(extract);
    this.#left = limit;
  }

  push(bytes: Uint8Array): void {
    this.#file?.write(bytes);
    this.#left -= bytes.length;
    if (this.#decided) {
      if (this.#left < 0) this.#reader = undefined;
      this.#reader?.push(bytes);
    } else {
      this.#probe = Buffer.concat([this.#probe, bytes]);
      if (this.#probe.length >= this.#probeLength) this.#decide();
    }
  }

  /** No more bytes come. Once. */
  finish(): FoundContent {
    if (!this.#decided) this.#decide();
    this.#file?.end();
    const report = this.#reader?.finish();
    const content = report === undefined ? null : this.#nesting.bounded(report);
    return { content, first: content === null ? hex(this.#probe) : null };
  }

  #decide(): void {
    this.#decided = true;
    const probe = this.#probe;
    this.#probe = Buffer.from(probe.subarray(0, FIRST_BYTES));
    if (this.#left < 0) return;
    const { kinds } = this.#nesting;
    const kind = kinds.find((kind) => kind.matches(probe.subarray(0, kind.probeLength)));
    this.#reader = kind?.read({ ...this.#options, kinds });
    this.#reader?.push(probe);
  }
}

/** One entry in the place of all, so that sizes still add up. */
function leftOut(sections: readonly ContentSection[]): ContentSection[] {
  const [first] = sections;
  if (first === undefined) return [];
  const size = sections.reduce((sum, section) => sum + section.size, 0);
  const fields = { sections: sections.length };
  const nothing = { first: null, sections: [], extract: null, content: null };
  return [{ name: 'further sections', offset: first.offset, size, fields, ...nothing }];
}
