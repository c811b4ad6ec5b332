// SPDX-License-Identifier: Apache-2.0
/** Formats and converters small enough to be followed by eye: runes, which are reversed, and their number. */

import {
  type Converter,
  EnvelopeEncoder,
  type EnvelopeHeader,
  type FormatRecord,
  newUuid,
  parseUuid,
  type Uuid,
} from '../../../src/formats/index.js';
import type { PlainRecord } from '../blobs.js';

/** Every format has this record; its payload is reversed by each conversion. */
export const RUNES = 0x10000;
/** Written by a converter at its end: how many records of runes there were, u8. */
export const COUNT = 0x10001;

export interface Kind {
  readonly uuid: Uuid;
  readonly name: string;
}
const kind = (name: string, digit: number): Kind => ({
  uuid: parseUuid(`0000000b-0000-4000-8000-00000000000${digit}`),
  name: `org.devstate.test.${name}`,
});
export const OAK = kind('oak', 1);
export const PINE = kind('pine', 2);
export const ROWAN = kind('rowan', 3);

/** Reverses runes as they come, and counts them at the end. `losses` are only said. */
export function reverser(from: Kind, to: Kind, options: { major?: number; minor?: number } = {}): Converter {
  return {
    from: { ...from, major: 1 },
    to: { ...to, version: { major: options.major ?? 1, minor: options.minor ?? 0 } },
    losses: [],
    begin: () => {
      let count = 0;
      return {
        record: (record) => {
          if (record.type === COUNT) return [];
          if (record.type !== RUNES) return undefined;
          count++;
          return [{ ...record, payload: record.payload.slice().reverse() }];
        },
        end: () => [{ type: COUNT, optional: false, payload: Uint8Array.of(count) }],
      };
    },
  };
}

export const CONVERTERS: readonly Converter[] = [
  reverser(OAK, PINE),
  reverser(PINE, OAK),
  reverser(PINE, ROWAN),
  reverser(ROWAN, PINE),
];

export function headerOf(format: Kind, more: Partial<EnvelopeHeader> = {}): EnvelopeHeader {
  return {
    format: format.uuid,
    version: { major: 1, minor: 0 },
    model: 'example.org/rune',
    parameters: { runes: 24, elder: true, script: 'futhark' },
    producer: { name: 'carver', version: '1.2' },
    stream: newUuid(),
    features: [],
    other: { site: 'Gallehus' },
    ...more,
  };
}

export function blobOf(header: EnvelopeHeader, records: readonly PlainRecord[]): Uint8Array {
  const encoder = new EnvelopeEncoder(header);
  const parts = [encoder.header()];
  for (const { type, flags, payload } of records) parts.push(...encoder.record(type, flags, payload));
  return new Uint8Array(Buffer.concat([...parts, encoder.end()]));
}

export function recordOf(payload: Uint8Array, more: Partial<FormatRecord> = {}): FormatRecord {
  return { type: RUNES, optional: false, payload, ...more };
}
