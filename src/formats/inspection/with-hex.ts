// SPDX-License-Identifier: Apache-2.0
/** An inspection with the first bytes of each record and section beside what is said of them. */
import { RECORD_HEADER_LENGTH } from '../envelope/layout.js';
import type { ContentSection } from '../foreign/content.js';
import { HEX_LENGTH } from './hex-dump.js';
import type { Inspection } from './types.js';

/** @param bytes those at an offset of the input, fewer at its end @returns the same value with members `hex` added */
export function withHex(value: Inspection, bytes: (offset: number, length: number) => Uint8Array): unknown {
  const hex = (offset: number, length: number): string =>
    Buffer.from(bytes(offset, Math.min(length, HEX_LENGTH))).toString('hex');
  const section = (of: ContentSection): unknown => ({
    ...of,
    ...(of.sections.length === 0 ? { hex: hex(of.offset, of.size) } : { sections: of.sections.map(section) }),
  });
  if (value.kind === 'content') {
    return { ...value, content: { ...value.content, sections: value.content.sections.map(section) } };
  }
  if (value.kind === 'unknown') return { ...value, hex: hex(0, value.size) };
  const records = value.records.map((record) => ({
    ...record,
    hex: hex(record.offset + RECORD_HEADER_LENGTH, record.storedLength),
  }));
  return { ...value, records };
}
