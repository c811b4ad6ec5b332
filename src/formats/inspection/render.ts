// SPDX-License-Identifier: Apache-2.0
/** An inspection as text for people: at most 80 columns, a tree, safe to print whatever the blob holds. */
import type { FieldMap, FieldValue } from '../fields.js';
import type { EnvelopeInspection, Inspection, InspectionError, RecordInspection } from './inspect.js';

const COLUMNS = 80;
/** Width of the `Key: ` column. */
const KEY_WIDTH = 13;
/** Rows of records shown; a run of equal records is one row. */
const RECORD_ROWS = 200;
/** Lines of fields shown for one record. */
const FIELD_LINES = 500;

/** Lines of text, each ended by a line feed. */
export function renderInspection(value: Inspection): string {
  const lines =
    value.kind === 'envelope'
      ? [...envelopeLines(value), ...recordLines(value)]
      : [
          pair('Format', 'unknown'),
          pair('Size', bytesText(value.size)),
          pair('First bytes', spaced(value.first)),
        ];
  const verdict = value.error === null ? [pair('Status', 'intact and complete')] : errorLines(value.error);
  return [...lines, ...verdict].map((line) => `${clip(line)}\n`).join('');
}

function envelopeLines(value: EnvelopeInspection): string[] {
  const { uuid, name, kind, version } = value.format;
  const title = name === null ? `unknown, version ${version}` : `${name} ${version} (${kind})`;
  const parameters = fieldLines(value.parameters, ' '.repeat(KEY_WIDTH));
  const other = fieldLines(value.other, ' '.repeat(KEY_WIDTH));
  return [
    pair('Format', title),
    pair('', uuid),
    pair('Model', printable(value.model)),
    ...parameters,
    pair('Producer', printable(`${value.producer.name} ${value.producer.version}`)),
    pair('Stream', value.stream),
    pair('Features', value.features.length === 0 ? 'none' : value.features.join(', ')),
    ...(other.length === 0 ? [] : [pair('Metadata', 'of names unknown here'), ...other]),
    pair('Size', bytesText(value.size)),
    pair('Records', `${value.totals.records}, ${bytesText(value.totals.payloadBytes)} of payload`),
  ];
}

/** One row per run of records that look the same; a record with fields is a run of its own. */
function recordLines(value: EnvelopeInspection): string[] {
  const fields = new Map(value.fields.map((entry) => [entry.record, entry.values]));
  const runs: RecordInspection[][] = [];
  for (const record of value.records) {
    const run = runs.at(-1);
    const last = run?.at(-1);
    const alike =
      last !== undefined &&
      last.type === record.type &&
      last.flags === record.flags &&
      last.sequence + 1 === record.sequence &&
      !fields.has(last.sequence) &&
      !fields.has(record.sequence);
    if (alike) run!.push(record);
    else runs.push([record]);
  }
  const rows = runs.slice(0, RECORD_ROWS).flatMap((run) => runLines(run, fields.get(run[0]!.sequence)));
  const hidden = runs.slice(RECORD_ROWS).reduce((sum, run) => sum + run.length, 0);
  if (hidden > 0) rows.push(`├─ … ${hidden} further records (\`-o json\` lists them)`);
  for (const { type, name, count, payloadBytes } of value.omitted) {
    const what = type === null ? 'of further types' : typeText(type, name);
    rows.push(`├─ … ${count} further records ${what}, ${bytesText(payloadBytes)}`);
  }
  if (value.fieldsOmitted > 0) rows.push(`├─ … fields of ${value.fieldsOmitted} records left out`);
  const { algorithm, value: digest, ok } = value.digest;
  rows.push(ok ? `└─ end: ${algorithm} ${digest!.slice(0, 32)}… ok` : '└─ end: not reached');
  return rows;
}

function runLines(run: RecordInspection[], fields: FieldMap | undefined): string[] {
  const first = run[0]!;
  const last = run.at(-1)!;
  const range = run.length === 1 ? `${first.sequence}` : `${first.sequence}–${last.sequence}`;
  const length = run.reduce((sum, record) => sum + record.length, 0);
  const columns = [
    `├─ ${range}`.padEnd(14),
    clip(typeText(first.type, first.name), 30).padEnd(30),
    (first.optional ? 'optional' : '').padEnd(8),
    bytesText(length).padStart(12),
    `@${first.offset}`,
  ];
  const preview = first.first === null || first.first === '' ? [] : [`│  └─ ${spaced(first.first)}`];
  return [columns.join(' '), ...preview, ...fieldLines(fields ?? {}, '│  ')];
}

/** The tree below a record or key. */
function fieldLines(fields: FieldMap, prefix: string): string[] {
  const lines = treeLines(Object.entries(fields), prefix);
  if (lines.length <= FIELD_LINES) return lines;
  return [
    ...lines.slice(0, FIELD_LINES),
    `${prefix}… ${lines.length - FIELD_LINES} further lines (\`-o json\` has all)`,
  ];
}

function treeLines(entries: [string, FieldValue][], prefix: string): string[] {
  return entries.flatMap(([name, value], index) => {
    const last = index === entries.length - 1;
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

function errorLines(error: InspectionError): string[] {
  const words = `${error.code}: ${printable(error.message)}`.split(' ');
  const lines: string[] = [''];
  for (const word of words) {
    const line = lines.at(-1)!;
    if (line.length + 1 + word.length > COLUMNS - KEY_WIDTH && line !== '') lines.push(word);
    else lines[lines.length - 1] = line === '' ? word : `${line} ${word}`;
  }
  return lines.map((line, index) => pair(index === 0 ? 'Error' : '', line));
}

function pair(key: string, value: string): string {
  return `${key === '' ? '' : `${key}:`}`.padEnd(KEY_WIDTH) + value;
}

function typeText(type: number, name: string | null): string {
  return name === null ? `unknown 0x${type.toString(16).padStart(8, '0')}` : printable(name);
}

/** Hexadecimal digits in pairs. */
function spaced(hex: string): string {
  return hex.replace(/../g, '$& ').trimEnd();
}

/** `text` with everything that could move the cursor, reorder or hide text written as an escape. */
function printable(text: string): string {
  return text.replace(
    /[\p{C}\p{Zl}\p{Zp}]/gu,
    (character) => `\\u{${character.codePointAt(0)!.toString(16)}}`,
  );
}

function clip(line: string, columns = COLUMNS): string {
  const characters = [...line];
  return characters.length <= columns ? line : `${characters.slice(0, columns - 1).join('')}…`;
}

/** A number of bytes in the largest unit that keeps it at least 1. */
function bytesText(bytes: number): string {
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
