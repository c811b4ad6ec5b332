// SPDX-License-Identifier: Apache-2.0
/** Damaged, forged and hostile blobs: each is refused with its own code, and costs no more memory than it has bytes. */
import fc from 'fast-check';
import t from 'tap';
import { decodeEnvelope, EnvelopeDecoder } from '../../../src/formats/envelope/decoder.js';
import { EnvelopeError } from '../../../src/formats/envelope/envelope-error.js';
import {
  codeOf,
  encodeBlob,
  fixture,
  forgeEnd,
  forgeHeader,
  forgeRecord,
  MINIMAL_HEADER,
  MINIMAL_RECORDS,
  type PlainRecord,
  piecesOf,
} from '../blobs.js';

const blob = encodeBlob(MINIMAL_RECORDS);

/** Changes each byte of `original` by each of `flips`; the changes that were not refused with a code of the envelope. */
function undetected(original: Uint8Array, flips: readonly number[]): string[] {
  const copy = new Uint8Array(original);
  const passed: string[] = [];
  for (let at = 0; at < copy.length; at++) {
    for (const flip of flips) {
      copy[at]! ^= flip;
      if (!codeOf(copy).startsWith('DEVSTATE_E_ENVELOPE_')) passed.push(`${at} ^ ${flip}`);
      copy[at]! ^= flip;
    }
  }
  return passed;
}

t.test('any single byte changed to any other value is refused', async (t) => {
  const every = Array.from({ length: 255 }, (_, index) => index + 1);
  t.same(undetected(blob, every), []);
  const bits = [1, 2, 4, 8, 16, 32, 64, 128];
  t.same(undetected(fixture('newer-writer.bin'), bits), [], 'in parts that this version does not know, too');
});

t.test('where the damage is', async (t) => {
  const flip = (at: number) => {
    const copy = blob.slice();
    copy[at]! ^= 0x10;
    return () => decodeEnvelope(copy);
  };
  t.throws(flip(0), { code: 'DEVSTATE_E_ENVELOPE_HEADER', offset: 0, record: undefined, exitCode: 6 });
  t.throws(flip(16), { code: 'DEVSTATE_E_ENVELOPE_MAGIC', offset: 16 });
  t.throws(flip(60), { code: 'DEVSTATE_E_ENVELOPE_METADATA', offset: 48 });
  t.throws(flip(167), { code: 'DEVSTATE_E_ENVELOPE_METADATA', offset: 166 }, 'padding');
  t.throws(flip(168), { code: 'DEVSTATE_E_ENVELOPE_RECORD', offset: 168, record: 0 });
  t.throws(
    flip(176),
    { code: 'DEVSTATE_E_ENVELOPE_RECORD', offset: 168, record: 0 },
    'a length is not believed',
  );
  t.throws(flip(200), { code: 'DEVSTATE_E_ENVELOPE_PAYLOAD', offset: 168, record: 0 });
  t.throws(flip(207), { code: 'DEVSTATE_E_ENVELOPE_PAYLOAD', offset: 168, record: 0 }, 'padding');
  t.throws(flip(300), { code: 'DEVSTATE_E_ENVELOPE_PAYLOAD', offset: 240, record: 2 }, 'the end record');
});

t.test('cut at any length', async (t) => {
  for (let length = 0; length < blob.length; length++) {
    const cut = () => decodeEnvelope(blob.subarray(0, length));
    t.throws(cut, { code: 'DEVSTATE_E_ENVELOPE_TRUNCATED', offset: length, exitCode: 6 }, `cut at ${length}`);
  }
});

t.test('bytes after the end', async (t) => {
  const trailing = Buffer.concat([blob, Buffer.alloc(1)]);
  t.throws(() => decodeEnvelope(trailing), { code: 'DEVSTATE_E_ENVELOPE_TRAILING', offset: blob.length });
  const decoder = new EnvelopeDecoder({});
  decoder.push(blob);
  t.throws(
    () => decoder.push(Buffer.from('x')),
    { code: 'DEVSTATE_E_ENVELOPE_TRAILING' },
    'in a later chunk',
  );
  t.equal(codeOf(Buffer.concat([blob, blob])), 'DEVSTATE_E_ENVELOPE_TRAILING', 'the blob twice');
});

const FIVE: PlainRecord[] = [0, 1, 2, 3, 4].map((value) => ({
  type: 0x10000 + (value % 2),
  flags: 0,
  payload: new Uint8Array(value * 3).fill(value),
}));

t.test('records reordered, repeated, dropped, added, replaced', async (t) => {
  const { header, records, end } = piecesOf(encodeBlob(FIVE));
  const [a, b, c, d, e] = records as [Uint8Array, Uint8Array, Uint8Array, Uint8Array, Uint8Array];
  const other = forgeRecord(2, { type: 0x10000, flags: 0, payload: new Uint8Array(6).fill(0x55) });
  const elsewhere = piecesOf(
    encodeBlob(FIVE, { ...MINIMAL_HEADER, producer: { name: 'x', version: '0.1.0' } }),
  );
  const cases: [string, Uint8Array[], string, number][] = [
    ['two swapped', [a, c, b, d, e, end], 'RECORD_MISSING', 1],
    ['one repeated', [a, b, b, c, d, e, end], 'RECORD_REPEATED', 2],
    ['an earlier one repeated at the end', [a, b, c, d, e, a, end], 'RECORD_REPEATED', 5],
    ['the first dropped', [b, c, d, e, end], 'RECORD_MISSING', 0],
    ['one dropped', [a, b, d, e, end], 'RECORD_MISSING', 2],
    ['the last dropped', [a, b, c, d, end], 'RECORD_MISSING', 4],
    ['all dropped', [end], 'RECORD_MISSING', 0],
    ['one added in the middle', [a, b, other, c, d, e, end], 'RECORD_REPEATED', 3],
    ['one added before the end', [...records, forgeRecord(5, FIVE[0]!), end], 'RECORD_REPEATED', 6],
    ['one replaced', [a, b, other, d, e, end], 'DIGEST', 5],
    ['the end of another stream', [...records, elsewhere.end], 'DIGEST', 5],
    ['the end twice', [...records, end, end], 'TRAILING', 5],
    ['an end that counts too many', [...records, forgeEnd(header, records, { count: 6 })], 'COUNT', 5],
    [
      'an end that counts other bytes',
      [...records, forgeEnd(header, records, { payloadBytes: 31 })],
      'COUNT',
      5,
    ],
    ['an end with flags', [...records, forgeEnd(header, records, { flags: 1 })], 'RECORD', 5],
    [
      'an end of another length',
      [forgeRecord(0, { type: 1, flags: 0, payload: new Uint8Array(40) })],
      'RECORD',
      0,
    ],
    ['a forged but consistent end', [...records, forgeEnd(header, records)], '', 0],
  ];
  for (const [what, pieces, code, record] of cases) {
    const damaged = Buffer.concat([header, ...pieces]);
    if (code === '') t.equal(codeOf(damaged), '', what);
    else if (code === 'TRAILING') t.equal(codeOf(damaged), 'DEVSTATE_E_ENVELOPE_TRAILING', what);
    else t.throws(() => decodeEnvelope(damaged), { code: `DEVSTATE_E_ENVELOPE_${code}`, record }, what);
  }
});

t.test('records that contradict themselves', async (t) => {
  const { header } = piecesOf(blob);
  const record: PlainRecord = { type: 0x10000, flags: 0, payload: Buffer.from('abc') };
  const cases: [string, Uint8Array, string][] = [
    ['type 0', forgeRecord(0, { ...record, type: 0 }), 'RECORD'],
    ['a flag of no feature', forgeRecord(0, { ...record, flags: 2 }), 'RECORD'],
    ['reserved bytes', forgeRecord(0, record, { reserved: 1 }), 'RECORD'],
    ['one byte too long', forgeRecord(0, record, { length: 16 * 1024 * 1024 + 1 }), 'RECORD_TOO_LONG'],
    ['longer than there is', forgeRecord(0, record, { length: 0xffffffff }), 'RECORD_TOO_LONG'],
    ['a sequence beyond 2^53', forgeRecord(0, record, { sequence: 2 ** 60 }), 'RECORD_MISSING'],
    ['a run of zeros', Buffer.alloc(64), 'RECORD'],
  ];
  for (const [what, bytes, code] of cases) {
    const damaged = Buffer.concat([header, bytes]);
    t.throws(
      () => decodeEnvelope(damaged),
      { code: `DEVSTATE_E_ENVELOPE_${code}`, record: 0, offset: 168 },
      what,
    );
  }
});

t.test('headers that contradict themselves', async (t) => {
  const cases: [string, Record<number, number[]>, string][] = [
    ['nothing changed', {}, ''],
    ['the nil UUID', { 0: new Array(16).fill(0) }, 'HEADER'],
    ['a newer envelope version', { 24: [2, 0] }, 'VERSION'],
    ['envelope version 0', { 24: [0, 0] }, 'VERSION'],
    ['a header too short', { 26: [40, 0] }, 'HEADER'],
    ['a header too long', { 26: [0x08, 0x10] }, 'HEADER'],
    ['a header length not a multiple of 8', { 26: [52, 0] }, 'HEADER'],
    ['header flags', { 32: [0, 0, 0, 0x80] }, 'HEADER'],
    ['too much metadata', { 36: [1, 0, 1, 0] }, 'METADATA'],
    ['no metadata', { 36: [0, 0, 0, 0], 40: [0, 0, 0, 0] }, 'METADATA'],
    ['another metadata checksum', { 40: [1, 2, 3, 4] }, 'METADATA'],
  ];
  for (const [what, changes, code] of cases) {
    t.equal(codeOf(forgeHeader(blob, changes)), code && `DEVSTATE_E_ENVELOPE_${code}`, what);
  }
  t.throws(() => decodeEnvelope(forgeHeader(blob, { 24: [2, 0] })), { exitCode: 3, message: /version 2/ });
});

t.test('arbitrary bytes end with a coded error', async (t) => {
  const pieces = piecesOf(blob);
  const fragment = fc.oneof(
    fc.uint8Array({ maxLength: 100 }),
    fc.constantFrom(pieces.header, ...pieces.records, pieces.end),
    fc
      .tuple(fc.nat(3), fc.nat(), fc.nat(), fc.uint8Array({ maxLength: 40 }))
      .map(([sequence, type, flags, payload]) => forgeRecord(sequence, { type, flags, payload })),
  );
  const headed = fc.tuple(fc.constant(pieces.header), fc.array(fragment, { maxLength: 6 }));
  const hostile = fc.oneof(
    fc.uint8Array({ maxLength: 400 }),
    fc.array(fragment, { maxLength: 6 }).map((parts) => Buffer.concat(parts)),
    headed.map(([first, parts]) => Buffer.concat([first, ...parts])),
  );
  const property = fc.property(hostile, fc.boolean(), (bytes, lenient) => {
    try {
      const { records } = decodeEnvelope(bytes, { lenient });
      return records.length <= bytes.length / 32;
    } catch (error) {
      return error instanceof EnvelopeError && error.offset <= bytes.length;
    }
  });
  fc.assert(property, { numRuns: 3000 });
  t.pass();
});

t.test('a claimed length allocates nothing', async (t) => {
  const { header } = piecesOf(blob);
  const claim = forgeRecord(
    0,
    { type: 0x10000, flags: 0, payload: Buffer.alloc(0) },
    { length: 16 * 1024 * 1024 },
  );
  const before = process.memoryUsage().arrayBuffers;
  const decoders = Array.from({ length: 64 }, () => {
    const decoder = new EnvelopeDecoder({});
    decoder.push(Buffer.concat([header, claim, Buffer.alloc(1000)]));
    return decoder;
  });
  const grown = process.memoryUsage().arrayBuffers - before;
  t.ok(grown < 4 * 1024 * 1024, `64 claims of 16 MiB took ${grown} bytes`);
  for (const decoder of decoders) t.throws(() => decoder.finish(), { code: 'DEVSTATE_E_ENVELOPE_TRUNCATED' });
});
