// SPDX-License-Identifier: Apache-2.0
/** The envelope's layout byte by byte, and its codec as a pair. */
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import {
  type DecodedRecord,
  decodeEnvelope,
  EnvelopeDecoder,
  skipUnknownRecord,
} from '../../../src/formats/envelope/decoder.js';
import { EnvelopeEncoder } from '../../../src/formats/envelope/encoder.js';
import type { EnvelopeHeader } from '../../../src/formats/envelope/header.js';
import { RECORD_LENGTH_MAX } from '../../../src/formats/envelope/layout.js';
import { newUuid } from '../../../src/formats/uuid.js';
import {
  codeOf,
  codeThrownBy,
  encodeBlob,
  fixture,
  forgeEnd,
  forgeRecord,
  MINIMAL_HEADER,
  MINIMAL_RECORDS,
  type PlainRecord,
  piecesOf,
} from '../blobs.js';

t.test('layout: every byte of the smallest blob', async (t) => {
  const layout: [string, string][] = [
    ['format UUID', 'd49a84ce5d674c5c9ba86c99372bc19d'],
    ['magic', '89 44455653 54 0d0a'],
    ['envelope version 1, header length 48', '0100 3000'],
    ['format version 1.0', '0100 0000'],
    ['flags', '00000000'],
    ['metadata length 118', '76000000'],
    ['metadata crc32c', '72f6344c'],
    ['header crc32c', '71d094c5'],
    ['metadata: map of 5, "model"', '85 a5 6d6f64656c'],
    ['"devstate.org/nvme"', 'b1 64657673746174652e6f72672f6e766d65'],
    ['"parameters": {"queues": 4}', 'aa 706172616d6574657273 81 a6 717565756573 04'],
    ['"producer": {"name": "devstate",', 'a8 70726f6475636572 82 a4 6e616d65 a8 6465767374617465'],
    ['"version": "0.1.0"}', 'a7 76657273696f6e a5 302e312e30'],
    ['"stream": 16 bytes', 'a6 73747265616d c410 ffb52a176d234071bc66ecaaf72ae18c'],
    ['"features": []', 'a8 6665617475726573 90'],
    ['padding to 8', '0000'],
    ['record 0: type, flags', '01000100 00000000'],
    ['length 5, payload crc32c', '05000000 4cbb719a'],
    ['sequence 0', '0000000000000000'],
    ['reserved, header crc32c', '00000000 9ecb588e'],
    ['"hello", padding to 8', '68656c6c6f 000000'],
    ['record 1: type, flags OPTIONAL', '02000100 01000000'],
    ['length 0, payload crc32c', '00000000 00000000'],
    ['sequence 1', '0100000000000000'],
    ['reserved, header crc32c', '00000000 41359e10'],
    ['end record: type 1, flags', '01000000 00000000'],
    ['length 48, payload crc32c', '30000000 9797d1a2'],
    ['sequence 2', '0200000000000000'],
    ['reserved, header crc32c', '00000000 ec15c418'],
    ['records 2', '0200000000000000'],
    ['payload bytes 5', '0500000000000000'],
    ['sha256', '1f16ada20d3209b207830201fbad0e926ed5eb57ed95f495192ec6fa00bf10c1'],
  ];
  const blob = Buffer.from(encodeBlob(MINIMAL_RECORDS));
  let offset = 0;
  for (const [what, text] of layout) {
    const expected = text.replaceAll(' ', '');
    t.equal(blob.toString('hex', offset, offset + expected.length / 2), expected, `${what} at ${offset}`);
    offset += expected.length / 2;
  }
  t.equal(offset, blob.length);
  t.ok(blob.equals(fixture('minimal.bin')), 'the fixture, which another encoder wrote, is the same');
});

t.test('a blob of a newer writer: longer header, unknown metadata, unknown optional records', async (t) => {
  const { header, records } = decodeEnvelope(fixture('newer-writer.bin'));
  t.same(header.version, { major: 1, minor: 7 });
  t.same(header.producer, { name: 'other-writer', version: '9' });
  t.same(header.parameters, {});
  t.same(header.features, []);
  t.match(header.other, { note: 'from the future', history: [{ host: 'a', at: 1700000000 }] });
  t.same(
    records.map(({ type, flags }) => [type, flags]),
    [
      [2, 0],
      [0xfff, 1],
      [0x12345678, 0x80000001],
    ],
  );
});

const arbitraryRecord: fc.Arbitrary<PlainRecord> = fc.record({
  type: fc.oneof(fc.constant(2), fc.integer({ min: 0x10000, max: 0xffffffff })),
  flags: fc
    .tuple(fc.boolean(), fc.nat(0xffff))
    .map(([optional, bits]) => bits * 0x10000 + (optional ? 1 : 0)),
  payload: fc.uint8Array({ maxLength: 5000, size: 'max' }),
});

const arbitraryName = fc.stringMatching(/^[A-Za-z][A-Za-z0-9._-]{0,20}$/);
const arbitraryHeader: fc.Arbitrary<EnvelopeHeader> = fc.record({
  format: fc.uuid().map(() => newUuid()),
  version: fc.record({ major: fc.nat(0xffff), minor: fc.nat(0xffff) }),
  model: fc.string({ minLength: 1, unit: 'binary' }),
  parameters: fc.dictionary(arbitraryName, fc.oneof(fc.boolean(), fc.maxSafeInteger(), fc.string()), {
    noNullPrototype: true,
  }),
  producer: fc.record({ name: fc.string(), version: fc.string() }),
  stream: fc.uuid().map(() => newUuid()),
  features: fc.constant([]),
  other: fc.constant({}),
});

t.test('encode and decode are inverse, whatever the chunks', async (t) => {
  const property = fc.property(
    arbitraryHeader,
    fc.array(arbitraryRecord, { maxLength: 12 }),
    fc.array(fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 10, max: 9000 })), { minLength: 1 }),
    (header, records, sizes) => {
      const blob = encodeBlob(records, header);
      const decoded: PlainRecord[] = [];
      let decodedHeader: EnvelopeHeader | undefined;
      const decoder = new EnvelopeDecoder({
        onHeader: (value) => {
          decodedHeader = value;
        },
        onRecord: ({ type, flags, payload }) => decoded.push({ type, flags, payload: payload.slice() }),
      });
      for (let at = 0, pushed = 0; at < blob.length; pushed++) {
        // The chunk is overwritten afterwards, as a reused receive buffer would be.
        const chunk = blob.slice(at, at + sizes[pushed % sizes.length]!);
        decoder.push(chunk);
        at += chunk.length;
        chunk.fill(0xee);
      }
      const summary = decoder.finish();
      const bytes = records.reduce((sum, record) => sum + record.payload.length, 0);
      const same =
        isDeepStrictEqual(decodedHeader, structuredClone(header)) &&
        summary.records === records.length &&
        summary.payloadBytes === bytes &&
        summary.length === blob.length;
      return same && Buffer.from(encodeBlob(decoded, decodedHeader)).equals(blob);
    },
  );
  // The limit bounds the search for a small counterexample, which payloads of this length make long.
  fc.assert(property, { numRuns: 200, interruptAfterTimeLimit: 10_000 });
  t.pass();
});

t.test('a payload that arrives in many chunks is put together', async (t) => {
  const payload = Uint8Array.from({ length: 300_000 }, (_, index) => (index * 7919) >> 5);
  const blob = encodeBlob([{ type: 0x10000, flags: 0, payload }]);
  let equal = false;
  const decoder = new EnvelopeDecoder({
    onRecord: (record) => {
      equal = Buffer.from(payload).equals(record.payload);
    },
  });
  for (let at = 0; at < blob.length; at += 1000) decoder.push(blob.subarray(at, at + 1000));
  decoder.finish();
  t.ok(equal);
});

t.test('a payload in one chunk is not copied, neither by encoder nor decoder', async (t) => {
  const payload = new Uint8Array(100).fill(7);
  const encoder = new EnvelopeEncoder(MINIMAL_HEADER);
  encoder.header();
  t.equal(encoder.record(0x10000, 0, payload)[1], payload);
  const unpadded = payload.subarray(4);
  t.equal(encoder.record(0x10000, 0, unpadded)[1], unpadded);
  t.match(encoder, { records: 2, payloadBytes: 196 });
  const blob = encodeBlob([{ type: 0x10000, flags: 0, payload }]);
  t.equal(decodeEnvelope(blob).records[0]!.payload.buffer, blob.buffer);
});

t.test('the encoder refuses what no decoder would accept', async (t) => {
  const started = () => {
    const encoder = new EnvelopeEncoder(MINIMAL_HEADER);
    encoder.header();
    return encoder;
  };
  const none = new Uint8Array(0);
  const misuses: [string, () => unknown][] = [
    ['a record before the header', () => new EnvelopeEncoder(MINIMAL_HEADER).record(0x10000, 0, none)],
    ['an end before the header', () => new EnvelopeEncoder(MINIMAL_HEADER).end()],
    ['a second header', () => started().header()],
    ['type 0', () => started().record(0, 0, none)],
    ['the end type', () => started().record(1, 0, none)],
    ['a type beyond 32 bits', () => started().record(2 ** 32, 0, none)],
    ['a flag of no feature', () => started().record(0x10000, 2, none)],
    ['flags beyond 32 bits', () => started().record(0x10000, 2 ** 32, none)],
    ['an undefined feature', () => new EnvelopeEncoder({ ...MINIMAL_HEADER, features: ['x'] })],
  ];
  for (const [what, work] of misuses) t.equal(codeThrownBy(work), 'DEVSTATE_E_INTERNAL', what);
  const ended = started();
  ended.end();
  t.equal(
    codeThrownBy(() => ended.record(0x10000, 0, none)),
    'DEVSTATE_E_INTERNAL',
    'a record after the end',
  );
  t.equal(
    codeThrownBy(() => ended.end()),
    'DEVSTATE_E_INTERNAL',
    'a second end',
  );
  const long = new Uint8Array(RECORD_LENGTH_MAX + 1);
  t.equal(
    codeThrownBy(() => started().record(0x10000, 0, long)),
    'DEVSTATE_E_ENVELOPE_RECORD_TOO_LONG',
  );
  t.equal(
    codeOf(encodeBlob([{ type: 0x10000, flags: 0, payload: long.subarray(1) }])),
    '',
    'the longest passes',
  );
});

t.test('features: refused by name unless known; only they may use their flags', async (t) => {
  const features = new Map([['gloss', 0x0000_0006]]);
  const encoder = new EnvelopeEncoder({ ...MINIMAL_HEADER, features: ['gloss'] }, { features });
  const blob = Buffer.concat([
    encoder.header(),
    ...encoder.record(0x10000, 4, Buffer.from('ab')),
    encoder.end(),
  ]);
  t.equal(decodeEnvelope(blob, { features }).records[0]!.flags, 4);
  t.throws(() => decodeEnvelope(blob), {
    code: 'DEVSTATE_E_ENVELOPE_FEATURE',
    exitCode: 3,
    message: /gloss/,
  });
  t.equal(codeOf(blob, { lenient: true }), '', 'a tool that only looks accepts it');
  t.equal(
    codeOf(blob, { features: new Map([['gloss', 2]]) }),
    'DEVSTATE_E_ENVELOPE_RECORD',
    'a flag it lacks',
  );
});

t.test('unknown records: skipped if optional, else refused by type', async (t) => {
  const { header } = piecesOf(encodeBlob([]));
  const unknownOf = (flags: number) => {
    const record = forgeRecord(0, { type: 0x77, flags, payload: Buffer.from('later') });
    return Buffer.concat([header, record, forgeEnd(header, [record])]);
  };
  t.equal(decodeEnvelope(unknownOf(1)).records[0]!.type, 0x77);
  t.throws(() => decodeEnvelope(unknownOf(0)), {
    code: 'DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN',
    exitCode: 3,
    message: /0x00000077/,
    record: 0,
  });
  t.equal(codeOf(unknownOf(0), { lenient: true }), '');

  const record: DecodedRecord = {
    type: 0x12345,
    flags: 0,
    sequence: 9,
    offset: 800,
    storedLength: 0,
    storedCrc: 0,
    sealed: false,
    payload: Buffer.alloc(0),
  };
  t.doesNotThrow(() => skipUnknownRecord({ ...record, flags: 1 }, 'x'));
  t.throws(() => skipUnknownRecord(record, 'org.example.x'), {
    code: 'DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN',
    message: /org\.example\.x has no record type 0x00012345/,
    offset: 800,
    record: 9,
  });
});

t.test('a callback that refuses stops the decoder for good', async (t) => {
  const blob = encodeBlob(MINIMAL_RECORDS);
  let calls = 0;
  const refusal = new Error('not today');
  const decoder = new EnvelopeDecoder({
    onRecord: () => {
      calls++;
      throw refusal;
    },
  });
  t.throws(() => decoder.push(blob), refusal);
  t.throws(() => decoder.push(blob), refusal);
  t.throws(() => decoder.finish(), refusal);
  t.equal(calls, 1);
  t.equal(decoder.complete, false);
});

t.test('complete is true from the last byte on', async (t) => {
  const blob = encodeBlob(MINIMAL_RECORDS);
  const decoder = new EnvelopeDecoder({});
  decoder.push(blob.subarray(0, -1));
  t.equal(decoder.complete, false);
  decoder.push(blob.subarray(-1));
  t.equal(decoder.complete, true);
});
