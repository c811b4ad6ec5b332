// SPDX-License-Identifier: Apache-2.0
/** The sections of content that is not ours, as a tree. */
import type { ContentReport, ContentSection } from '../foreign/content.js';
import { HEX_LENGTH, hexLines } from './hex-dump.js';
import { bytesText, clip, fieldLines, printable, spaced } from './lines.js';

export interface RenderOptions {
  /** Show the fields of records and sections. Default: false. */
  readonly fields?: boolean;
  /** Show bytes: gives those at an offset of the input. Default: none are shown. */
  readonly bytes?: (offset: number, length: number) => Uint8Array;
}

/**
 * Rows shown of the sections of one parent, its first and its last; a run of sections of the same name is one row. What is
 * said of a VM's devices comes behind its memory, of which there may be any number of sections.
 */
const FIRST_ROWS = 300;
const LAST_ROWS = 200;
/** Columns up to the sizes. */
const NAME_COLUMNS = 50;

export function sectionLines(
  sections: readonly ContentSection[],
  prefix: string,
  options: RenderOptions,
): string[] {
  const runs = runsOf(sections, options);
  const rows = (from: number, to: number): string[] =>
    runs.slice(from, to).flatMap((run, index) => {
      const last = from + index === runs.length - 1;
      const below = `${prefix}${last ? '   ' : '│  '}`;
      return [runLine(run, `${prefix}${last ? '└─ ' : '├─ '}`), ...insideLines(run[0]!, below, options)];
    });
  const hidden = runs.length - FIRST_ROWS - LAST_ROWS;
  if (hidden <= 0) return rows(0, runs.length);
  return [
    ...rows(0, FIRST_ROWS),
    `${prefix}├─ … ${hidden} further rows (\`-o json\` has all)`,
    ...rows(runs.length - LAST_ROWS, runs.length),
  ];
}

/** Sections of one name in a row, as long as there is nothing more to show of each. */
function runsOf(sections: readonly ContentSection[], options: RenderOptions): ContentSection[][] {
  const runs: ContentSection[][] = [];
  for (const section of sections) {
    const run = runs.at(-1);
    if (
      run !== undefined &&
      run[0]!.name === section.name &&
      isPlain(run[0]!, options) &&
      isPlain(section, options)
    ) {
      run.push(section);
    } else runs.push([section]);
  }
  return runs;
}

function isPlain({ name, sections, content }: ContentSection, { fields, bytes }: RenderOptions): boolean {
  return fields !== true && bytes === undefined && name !== null && sections.length === 0 && content === null;
}

function runLine(run: readonly ContentSection[], prefix: string): string {
  const { name, offset } = run[0]!;
  const times = run.length === 1 ? '' : ` ×${run.length}`;
  const title = `${prefix}${name === null ? 'unknown' : printable(name)}`;
  const size = run.reduce((sum, section) => sum + section.size, 0);
  const named = clip(title, NAME_COLUMNS - times.length) + times;
  return `${named.padEnd(NAME_COLUMNS)} ${bytesText(size).padStart(11)} @${offset}`;
}

function insideLines(section: ContentSection, prefix: string, options: RenderOptions): string[] {
  const { first, sections, content } = section;
  const bytes =
    sections.length === 0 ? options.bytes?.(section.offset, Math.min(section.size, HEX_LENGTH)) : undefined;
  const preview = bytes === undefined && first !== null && first !== '' ? [spaced(first)] : [];
  const more = sections.length > 0 || content !== null || preview.length > 0;
  return [
    ...(options.fields === true ? fieldLines(section.fields, prefix, more) : []),
    ...preview.map((text) => `${prefix}└─ ${text}`),
    ...(bytes === undefined ? [] : hexLines(bytes, section.size, prefix)),
    ...sectionLines(sections, prefix, options),
    ...(content === null ? [] : contentLines(content, prefix, options)),
  ];
}

/** What a section's bytes are in themselves. */
function contentLines(content: ContentReport, prefix: string, options: RenderOptions): string[] {
  const { kind, fields, sections, error } = content;
  // Its bytes may have come in pieces: where they are in the file is said by the sections that it was found in.
  const { bytes: _, ...within } = options;
  return [
    `${prefix}is ${kind}${describe(fields)}`,
    ...(options.fields === true ? fieldLines(fields, prefix, sections.length > 0) : []),
    ...sectionLines(sections, prefix, within),
    ...(error === null ? [] : [`${prefix}${error.code}: ${printable(error.message)}`]),
  ];
}

/** Names the format of a blob in devstate's envelope. */
function describe({ format }: ContentReport['fields']): string {
  if (typeof format !== 'object' || format === null || Array.isArray(format)) return '';
  const { name, uuid, version } = format;
  return typeof version === 'string' ? ` of ${printable(String(name ?? uuid))} ${version}` : '';
}
