// SPDX-License-Identifier: Apache-2.0
/** Our own blobs as a kind of content, for those that are found within a stream of another kind. */

import { hasMagic } from '../envelope/header.js';
import { HEADER_INVARIANT_LENGTH, padded, RECORD_HEADER_LENGTH } from '../envelope/layout.js';
import type { FieldMap, FieldValue } from '../fields.js';
import type { ContentKind, ContentReport, ContentSection } from '../foreign/content.js';
import { EnvelopeReader } from './envelope-reader.js';
import type { EnvelopeInspection, FormatDescription, Inspection, UnknownInspection } from './types.js';

/** Records listed of one: there may be many of them within a stream. */
const LISTED = 1000;

export function envelopeKind(formats: readonly FormatDescription[]): ContentKind {
  return {
    name: 'envelope',
    title: 'devstate blob',
    probeLength: HEADER_INVARIANT_LENGTH,
    matches: hasMagic,
    read: ({ offset = 0 }) => {
      const reader = new EnvelopeReader({ formats, listed: LISTED });
      return {
        push: (chunk) => reader.push(chunk),
        finish: () => report(reader.finish(), offset),
      };
    },
  };
}

/** An inspection as what is found within something else, and what to call it. */
export function reportOf(found: Inspection): { title: string; report: ContentReport | null } {
  if (found.kind === 'content') return { title: found.title, report: found.content };
  if (found.kind === 'unknown') return { title: 'unknown content', report: null };
  return { title: 'devstate blob', report: report(found, 0) };
}

function report(found: EnvelopeInspection | UnknownInspection, start: number): ContentReport {
  const { size, error } = found;
  const { code = '', message = '', offset = null } = error ?? {};
  const where = error && { code, message, offset: offset === null ? null : start + offset };
  if (found.kind === 'unknown') {
    return { kind: 'envelope', size, fields: { first: found.first }, sections: [], error: where };
  }
  const { format, model, parameters, producer, stream, features, other, totals, digest } = found;
  const fields = { format, model, parameters, producer, stream, features, other, totals, digest };
  return {
    kind: 'envelope',
    size,
    fields: fields as { [name: string]: FieldValue },
    sections: sections(found, start),
    error: where,
  };
}

/** The header, each record that is listed, and what lies between and behind them, so that the sizes add up. */
function sections(found: EnvelopeInspection, start: number): ContentSection[] {
  const fields = new Map(found.fields.map(({ record, values }) => [record, values]));
  const list: ContentSection[] = [];
  let at = 0;
  const add = (name: string | null, end: number, values: FieldMap, first: string | null): void => {
    if (end <= at) return;
    const place = { offset: start + at, size: end - at };
    list.push({ name, ...place, fields: values, first, sections: [], extract: null, content: null });
    at = end;
  };
  for (const { sequence, name, offset, storedLength, first } of found.records) {
    add(at === 0 ? 'header' : 'further records', offset, {}, null);
    add(name, offset + RECORD_HEADER_LENGTH + padded(storedLength), fields.get(sequence) ?? {}, first);
  }
  add(found.digest.ok && found.omitted.length === 0 ? 'end' : 'rest', found.size, {}, null);
  return list;
}
