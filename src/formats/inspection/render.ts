// SPDX-License-Identifier: Apache-2.0
/** An inspection as text for people: at most 80 columns, a tree, safe to print whatever the bytes hold. */

import { RECORD_HEADER_LENGTH } from '../envelope/layout.js';
import type { FieldMap } from '../fields.js';
import { HEX_LENGTH, hexLines } from './hex-dump.js';
import { bytesText, clip, fieldLines, pair, printable, spaced, wrapped } from './lines.js';
import { type RenderOptions, sectionLines } from './render-sections.js';
import type {
  ContentInspection,
  EnvelopeInspection,
  Inspection,
  InspectionError,
  OpaqueInspection,
  RecordInspection,
} from './types.js';

/** Rows of records shown; a run of equal records is one row. */
const RECORD_ROWS = 200;

/** Lines of text, each ended by a line feed. */
export function renderInspection(value: Inspection, options: RenderOptions = {}): string {
  // What has no checksum can only be followed to its end.
  const sound = soundness(value);
  const verdict = value.error === null ? [pair('Status', sound)] : errorLines(value.error);
  return [...inspectionLines(value, options), ...verdict].map((line) => `${clip(line)}\n`).join('');
}

function soundness(value: Inspection): string {
  if (value.kind !== 'content') return 'intact and complete';
  return value.recognised === undefined
    ? 'complete, as far as its structure tells'
    : 'recognised by its first bytes; it holds no device state';
}

function inspectionLines(value: Inspection, options: RenderOptions): string[] {
  if (value.kind === 'envelope') {
    return [...envelopeLines(value), ...recordLines(value, options), ...opaqueLines(value.opaque, options)];
  }
  if (value.kind === 'content') {
    return contentLines(value, options);
  }
  return [
    pair('Format', 'unknown'),
    pair('Size', bytesText(value.size)),
    pair('First bytes', spaced(value.first)),
  ];
}

function envelopeLines(value: EnvelopeInspection): string[] {
  const { uuid, name, kind, version } = value.format;
  const title = name === null ? `unknown, version ${version}` : `${name} ${version} (${kind})`;
  const parameters = fieldLines(value.parameters, pair('', ''));
  const { converted_from: origin, ...unknown } = value.other;
  const other = fieldLines(unknown, pair('', ''));
  return [
    pair('Format', title),
    pair('', uuid),
    pair('Model', printable(value.model)),
    ...parameters,
    pair('Producer', printable(`${value.producer.name} ${value.producer.version}`)),
    ...(origin === undefined ? [] : [pair('Converted', `from ${printable(String(origin))}`)]),
    pair('Stream', value.stream),
    pair('Features', value.features.length === 0 ? 'none' : value.features.join(', ')),
    ...(other.length === 0 ? [] : [pair('Metadata', 'of names unknown here'), ...other]),
    pair('Size', bytesText(value.size)),
    pair('Records', `${value.totals.records}, ${bytesText(value.totals.payloadBytes)} of payload`),
  ];
}

/** Kinds of which the fields are few, and say what the file is. */
const SUMMED_UP: readonly string[] = ['libvirt-save'];

function contentLines({ title, recognised, content }: ContentInspection, options: RenderOptions): string[] {
  // Content that is only recognised has nothing but these.
  const shown = options.fields === true || recognised !== undefined || SUMMED_UP.includes(content.kind);
  const fields = shown ? fieldLines(content.fields, pair('', '')) : [];
  return [
    pair('Format', title),
    ...fields,
    pair('Size', bytesText(content.size)),
    ...sectionLines(content.sections, '', options),
  ];
}

function opaqueLines(opaque: OpaqueInspection | null, options: RenderOptions): string[] {
  if (opaque === null) return [];
  if (opaque.content === null) {
    return [
      pair('Opaque', `${bytesText(opaque.size)} of a stream unknown here`),
      pair('First bytes', spaced(opaque.first ?? '')),
    ];
  }
  // Offsets in it are those of the stream, which the records only carry.
  const { bytes: _, ...inner } = options;
  const { kind, fields, sections, error } = opaque.content;
  return [
    pair('Opaque', `${bytesText(opaque.size)} of ${kind}`),
    ...(options.fields === true ? fieldLines(fields, pair('', '')) : []),
    ...sectionLines(sections, '', inner),
    ...(error === null ? [] : errorLines({ ...error, record: null })),
  ];
}

/** One row per run of records that look the same; a record with more to show is a run of its own. */
function recordLines(value: EnvelopeInspection, options: RenderOptions): string[] {
  // What is wrong with a record is said in any case.
  const shown =
    options.fields === true ? value.fields : value.fields.filter(({ values }) => 'error' in values);
  const fields = new Map(shown.map((entry) => [entry.record, entry.values]));
  const runs: RecordInspection[][] = [];
  for (const record of value.records) {
    const run = runs.at(-1);
    const last = run?.at(-1);
    const alike =
      last !== undefined &&
      options.bytes === undefined &&
      last.type === record.type &&
      last.flags === record.flags &&
      last.sequence + 1 === record.sequence &&
      !fields.has(last.sequence) &&
      !fields.has(record.sequence);
    if (alike) run!.push(record);
    else runs.push([record]);
  }
  const rows = runs
    .slice(0, RECORD_ROWS)
    .flatMap((run) => runLines(run, fields.get(run[0]!.sequence), options));
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

function runLines(run: RecordInspection[], fields: FieldMap | undefined, options: RenderOptions): string[] {
  const first = run[0]!;
  const last = run.at(-1)!;
  const range = run.length === 1 ? `${first.sequence}` : `${first.sequence}–${last.sequence}`;
  const length = run.reduce((sum, record) => sum + record.length, 0);
  const columns = [
    `├─ ${range}`.padEnd(14),
    clip(typeText(first.type, first.name), 30).padEnd(30),
    (first.compression ?? (first.optional ? 'optional' : '')).padEnd(8),
    bytesText(length).padStart(12),
    `@${first.offset}`,
  ];
  const preview = first.first === null || first.first === '' ? [] : [`│  └─ ${spaced(first.first)}`];
  const shown = Math.min(first.storedLength, HEX_LENGTH);
  const payload = options.bytes?.(first.offset + RECORD_HEADER_LENGTH, shown);
  const dump = payload === undefined ? preview : hexLines(payload, first.storedLength, '│  ');
  return [columns.join(' '), ...dump, ...fieldLines(fields ?? {}, '│  ')];
}

function errorLines(error: InspectionError): string[] {
  const lines = wrapped(`${error.code}: ${printable(error.message)}`);
  return lines.map((line, index) => pair(index === 0 ? 'Error' : '', line));
}

function typeText(type: number, name: string | null): string {
  return name === null ? `unknown 0x${type.toString(16).padStart(8, '0')}` : printable(name);
}
