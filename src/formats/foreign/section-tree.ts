// SPDX-License-Identifier: Apache-2.0
/**
 * The sections of a report as they are found, bounded: of those that are too many, neighbours are one entry that says
 * how many they are, so that sizes still add up.
 */
import type { FieldMap } from '../fields.js';
import type { ContentReport, ContentSection } from './content.js';

/** Sections listed on the top level; of those that repeat, as a migration continues for hours; and below, in all. */
const LISTED = 10_000;
const REPEATING_LISTED = 2000;
const INNER_LISTED = 10_000;
/** Sections listed in one section. */
const INNER_LISTED_OF_ONE = 1000;
/** Name of the entry that stands for several. */
const FURTHER = 'further sections';

/** A section that is being read. */
export interface OpenSection extends ContentSection {
  name: string | null;
  size: number;
  fields: FieldMap;
  first: string | null;
  sections: OpenSection[];
  extract: string | null;
  content: ContentReport | null;
}

export class SectionTree {
  /** Top level. */
  readonly sections: OpenSection[] = [];
  readonly #open: OpenSection[] = [];
  #listed = 0;
  #repeatingListed = 0;
  #innerListed = 0;

  /** The section that was begun last and has not ended. */
  get innermost(): OpenSection | undefined {
    return this.#open.at(-1);
  }

  /** The top level section that has not ended. */
  get outermost(): OpenSection | undefined {
    return this.#open[0];
  }

  /** Begins a section in the one that is open, if any. */
  begin(name: string | null, offset: number, fields: FieldMap = {}): OpenSection {
    const section = {
      name,
      offset,
      size: 0,
      fields,
      first: null,
      sections: [],
      extract: null,
      content: null,
    };
    this.#open.push(section);
    return section;
  }

  /**
   * Ends the section that was begun last; its parent lists it.
   * @param repeats whether any number of such sections is to be expected
   */
  end(offset: number, repeats = false): void {
    const section = this.#open.pop()!;
    section.size = offset - section.offset;
    const parent = this.#open.at(-1);
    const siblings = parent?.sections ?? this.sections;
    if (this.#lists(parent, repeats)) {
      siblings.push(section);
      return;
    }
    const last = siblings.at(-1);
    if (last?.name === FURTHER) {
      last.size += section.size;
      last.fields = { sections: Number(last.fields.sections) + 1 };
    } else siblings.push({ ...section, name: FURTHER, fields: { sections: 1 }, sections: [], first: null });
  }

  /** Whether one more section is listed. */
  #lists(parent: OpenSection | undefined, repeats: boolean): boolean {
    if (parent !== undefined) {
      return parent.sections.length < INNER_LISTED_OF_ONE && this.#innerListed++ < INNER_LISTED;
    }
    return (!repeats || this.#repeatingListed++ < REPEATING_LISTED) && this.#listed++ < LISTED;
  }

  /** Ends all that is open, as the stream cannot be followed beyond `offset`. */
  abandon(offset: number): void {
    while (this.#open.length > 0) {
      this.innermost!.fields.incomplete = true;
      this.end(offset);
    }
  }
}
