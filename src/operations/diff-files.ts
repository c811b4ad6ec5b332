// SPDX-License-Identifier: Apache-2.0
/** In what the states of two blobs differ, by the names of their fields. */

import { converters, formatDescriptions } from '../devices/catalogue.js';
import { DevstateError } from '../errors.js';
import {
  BlobConverter,
  type Converter,
  type EnvelopeInspection,
  type FieldMap,
  type FieldValue,
  findPath,
  inspect,
  SIGNATURE_LENGTH,
  type Uuid,
} from '../formats/index.js';
import { PRODUCER } from '../version.js';
import type { InputFile } from './files/input.js';
import { whatItIs } from './files/wrong-file.js';

/** A field, or a whole record, that is not the same. */
export interface Difference {
  /** `queues.submission[1].head`; of a record without fields its name. */
  readonly path: string;
  /** Value in the first blob; null if it is not there. */
  readonly a: FieldValue;
  /** Value in the second blob; null if it is not there. */
  readonly b: FieldValue;
}

export interface DiffResult {
  readonly same: boolean;
  /** The format that the states were compared in: name, or UUID, and version. */
  readonly format: string;
  readonly differences: readonly Difference[];
  /** What has not been compared, a sentence each. */
  readonly remarks: readonly string[];
}

/**
 * Blobs of different formats are compared in one of them, if one can be converted to the other without loss. Who saved
 * them, and when, is not compared.
 * @throws DEVSTATE_E_INPUT, DEVSTATE_E_ENVELOPE_…, DEVSTATE_E_CONVERSION
 */
export async function diffFiles(a: InputFile, b: InputFile): Promise<DiffResult> {
  let [left, right] = [await inspectBlob(a), await inspectBlob(b)];
  if (!isSameFormat(left, right)) {
    const toLeft = wayBetween(right, left);
    const toRight = toLeft === undefined ? wayBetween(left, right) : undefined;
    if (toLeft !== undefined) right = await inspectBlob(b, toLeft);
    else if (toRight !== undefined) left = await inspectBlob(a, toRight);
    else {
      const names = [left, right].map(formatName).join(' and ');
      throw new DevstateError(
        'DEVSTATE_E_CONVERSION',
        `${names} cannot be compared: no way without loss is known`,
      );
    }
  }
  const differences = compare(leavesOf(left), leavesOf(right));
  return {
    same: differences.length === 0,
    format: formatName(left),
    differences,
    remarks: [...remarksOf(a.path, left), ...remarksOf(b.path, right)],
  };
}

async function inspectBlob(input: InputFile, way: readonly Converter[] = []): Promise<EnvelopeInspection> {
  const chunks = way.length === 0 ? input.chunks() : converted(input, way);
  const found = await inspect(chunks, { formats: formatDescriptions });
  if (found.error !== null && found.kind !== 'content') {
    const { code, message } = found.error;
    const what = whatItIs(input.head(SIGNATURE_LENGTH), code);
    if (what !== undefined) throw new DevstateError(code as DevstateError['code'], `${input.path} ${what}`);
    throw new DevstateError(code as DevstateError['code'], `${input.path}: ${message}`);
  }
  if (found.kind === 'envelope') return found;
  const what = whatItIs(input.head(SIGNATURE_LENGTH), 'DEVSTATE_E_ENVELOPE_MAGIC') ?? 'is no device state';
  throw new DevstateError('DEVSTATE_E_ENVELOPE_MAGIC', `${input.path} ${what}`);
}

async function* converted(input: InputFile, way: readonly Converter[]): AsyncGenerator<Uint8Array> {
  const parts: Uint8Array[] = [];
  const write = (bytes: Uint8Array) => parts.push(new Uint8Array(bytes));
  const converter = new BlobConverter({ choose: () => way, producer: PRODUCER, write });
  for await (const chunk of input.chunks()) {
    converter.push(chunk);
    yield* parts.splice(0);
  }
  converter.finish();
  yield* parts;
}

function wayBetween(from: EnvelopeInspection, to: EnvelopeInspection): Converter[] | undefined {
  return findPath(pointOf(from), pointOf(to), converters);
}

function isSameFormat(a: EnvelopeInspection, b: EnvelopeInspection): boolean {
  return wayBetween(a, b)?.length === 0;
}

function pointOf({ format }: EnvelopeInspection): { uuid: Uuid; major: number } {
  return { uuid: format.uuid, major: Number(format.version.split('.')[0]) };
}

function formatName({ format }: EnvelopeInspection): string {
  return `${format.name ?? format.uuid} ${format.version}`;
}

/** Every value that there is to compare, by its path. */
function leavesOf({
  model,
  parameters,
  records,
  fields,
  other,
}: EnvelopeInspection): Map<string, FieldValue> {
  const leaves = new Map<string, FieldValue>([['model', model]]);
  addLeaves(leaves, 'parameters', parameters);
  const { converted_from: _, ...kept } = other;
  addLeaves(leaves, 'metadata', kept);
  const described = new Map(fields.map(({ record, values }) => [record, values]));
  const seen = new Map<string, number>();
  for (const { sequence, name, type, length, crc32c } of records) {
    const title = name ?? `record 0x${type.toString(16).padStart(8, '0')}`;
    const count = (seen.get(title) ?? 0) + 1;
    seen.set(title, count);
    const path = count === 1 ? title : `${title} (${count})`;
    const values = described.get(sequence);
    if (values === undefined) leaves.set(path, `${length} bytes, CRC-32C ${crc32c}`);
    else addLeaves(leaves, path, values);
  }
  return leaves;
}

function addLeaves(leaves: Map<string, FieldValue>, path: string, value: FieldValue): void {
  if (typeof value !== 'object' || value === null || isListOfScalars(value)) leaves.set(path, value);
  else if (Array.isArray(value)) {
    const names = namesOf(value);
    for (const [index, item] of value.entries()) addLeaves(leaves, `${path}[${names[index]}]`, item);
  } else for (const [name, item] of Object.entries(value)) addLeaves(leaves, `${path}.${name}`, item);
}

/**
 * What tells the items of a list apart: their `id`, if each has one, so that one more is not a difference in all. Several
 * of one id are distinguished by what they are, not by their order: one feature with a value for each of its selectors.
 */
function namesOf(items: readonly FieldValue[]): string[] {
  const ids = items.map((item) => (isMap(item) ? item.id : undefined));
  if (!ids.every((id) => typeof id === 'number' || typeof id === 'string')) {
    return items.map((_, index) => String(index));
  }
  const texts = items.map((item) => JSON.stringify(item));
  const names: string[] = [];
  const seen = new Map<string, number>();
  for (const index of [...texts.keys()].sort((a, b) => (texts[a]! < texts[b]! ? -1 : 1))) {
    const name = `id ${ids[index]}`;
    const count = (seen.get(name) ?? 0) + 1;
    seen.set(name, count);
    names[index] = count === 1 ? name : `${name} (${count})`;
  }
  return names;
}

function isListOfScalars(value: FieldValue): boolean {
  return Array.isArray(value) && value.every((item) => typeof item !== 'object' || item === null);
}

function isMap(value: FieldValue): value is FieldMap {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function compare(a: ReadonlyMap<string, FieldValue>, b: ReadonlyMap<string, FieldValue>): Difference[] {
  return [...new Set([...a.keys(), ...b.keys()])]
    .map((path) => ({ path, a: a.get(path) ?? null, b: b.get(path) ?? null }))
    .filter(({ a, b }) => JSON.stringify(a) !== JSON.stringify(b));
}

function remarksOf(path: string, { omitted, fieldsOmitted }: EnvelopeInspection): string[] {
  const records = omitted.reduce((sum, { count }) => sum + count, 0);
  return [
    ...(records > 0 ? [`${path}: ${records} records, too many to be listed, were not compared`] : []),
    ...(fieldsOmitted > 0 ? [`${path}: of ${fieldsOmitted} records only the checksum was compared`] : []),
  ];
}
