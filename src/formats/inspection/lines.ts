// SPDX-License-Identifier: Apache-2.0
/** Pieces of text for people: keys and values, trees of fields, nothing that could move the cursor. */
import type { FieldMap, FieldValue } from '../fields.js';

const COLUMNS = 80;
/** Width of the `Key: ` column. */
const KEY_WIDTH = 13;
/** Lines of fields shown for one record. */
const FIELD_LINES = 500;

export function pair(key: string, value: string): string {
  return `${key === '' ? '' : `${key}:`}`.padEnd(KEY_WIDTH) + value;
}

/** Broken between words, so that each line fits behind a key. */
export function wrapped(text: string): string[] {
  const lines: string[] = [''];
  for (const word of text.split(' ')) {
    const line = lines.at(-1)!;
    if (line.length + 1 + word.length > COLUMNS - KEY_WIDTH && line !== '') lines.push(word);
    else lines[lines.length - 1] = line === '' ? word : `${line} ${word}`;
  }
  return lines;
}

/** The tree below a record or key. @param more whether other branches follow */
export function fieldLines(fields: FieldMap, prefix: string, more = false): string[] {
  const lines = treeLines(Object.entries(fields), prefix, more);
  if (lines.length <= FIELD_LINES) return lines;
  return [
    ...lines.slice(0, FIELD_LINES),
    `${prefix}… ${lines.length - FIELD_LINES} further lines (\`-o json\` has all)`,
  ];
}

function treeLines(entries: [string, FieldValue][], prefix: string, more = false): string[] {
  return entries.flatMap(([name, value], index) => {
    const last = !more && index === entries.length - 1;
    const branch = `${prefix}${last ? '└─ ' : '├─ '}${printable(name)}`;
    const below = `${prefix}${last ? '   ' : '│  '}`;
    const nested = typeof value === 'object' && value !== null && !isFlat(value);
    if (!nested) return [`${branch} = ${printable(JSON.stringify(value))}`];
    const inner: [string, FieldValue][] = Array.isArray(value)
      ? value.map((item, at) => [`[${at}]`, item])
      : Object.entries(value);
    return [branch, ...treeLines(inner, below)];
  });
}

/** Whether a list or map is short enough to be written on its line: a list of scalars, or nothing. */
function isFlat(value: FieldValue[] | FieldMap): boolean {
  const items = Object.values(value);
  return items.length === 0 || (Array.isArray(value) && items.every((item) => typeof item !== 'object'));
}

/** Hexadecimal digits in pairs. */
export function spaced(hex: string): string {
  return hex.replace(/../g, '$& ').trimEnd();
}

/** `text` with everything that could move the cursor, reorder or hide text written as an escape. */
export function printable(text: string): string {
  return text.replace(
    /[\p{C}\p{Zl}\p{Zp}]/gu,
    (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`,
  );
}

export function clip(line: string, columns = COLUMNS): string {
  const characters = [...line];
  return characters.length <= columns ? line : `${characters.slice(0, columns - 1).join('')}…`;
}

/** A number of bytes in the largest unit that keeps it at least 1. */
export function bytesText(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  const units = ['KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let value = bytes / 1024;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value.toFixed(1)} ${units[unit]}`;
}
