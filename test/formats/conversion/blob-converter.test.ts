// SPDX-License-Identifier: Apache-2.0
/** Whole blobs through converters: in pieces of any size, there and back with all that no one understood, or refused by name. */

import fc from 'fast-check';
import t from 'tap';
import {
  BlobConverter,
  type BlobConverterOptions,
  type Converter,
  decodeEnvelope,
  EnvelopeRecord,
  RecordFlag,
} from '../../../src/formats/index.js';
import { hex, sameBytes, toHex } from '../../support/hex.js';
import {
  codeThrownBy,
  encodeBlob,
  fixture,
  forgeHeader,
  forgeRecord,
  MINIMAL_RECORDS,
  type PlainRecord,
  piecesOf,
} from '../blobs.js';
import { blobOf, CONVERTERS, COUNT, headerOf, type Kind, OAK, PINE, ROWAN, RUNES, reverser } from './rune.js';

const { optional } = RecordFlag;
const PRODUCER = { name: 'converter', version: '9' };

/** Converts `blob`, given in pieces of the lengths that `pieces` yields (then of the last one). */
function convert(
  blob: Uint8Array,
  way: readonly Converter[],
  pieces: readonly number[] = [blob.length],
  more: Partial<BlobConverterOptions> = {},
): Uint8Array {
  const parts: Uint8Array[] = [];
  const converter = new BlobConverter({
    choose: () => way,
    producer: PRODUCER,
    write: (bytes) => parts.push(bytes.slice()),
    ...more,
  });
  for (let at = 0, index = 0; at < blob.length; index++) {
    const length = Math.max(1, pieces[Math.min(index, pieces.length - 1)] ?? 1);
    // What is given is valid only until the call returns.
    const piece = blob.slice(at, at + length);
    converter.push(piece);
    piece.fill(0xee);
    at += length;
  }
  converter.finish();
  return new Uint8Array(Buffer.concat(parts));
}

const way = (...kinds: Kind[]): Converter[] =>
  kinds.slice(1).map((to, index) => {
    const found = CONVERTERS.find((one) => one.from.uuid === kinds[index]?.uuid && one.to.uuid === to.uuid);
    if (found === undefined) throw new Error(`no converter to ${to.name}`);
    return found;
  });

/** `type flags payload` of each record, payloads as text. */
function listOf(blob: Uint8Array): string[] {
  return decodeEnvelope(blob).records.map(
    ({ type, flags, payload }) => `${type.toString(16)} ${flags.toString(16)} ${Buffer.from(payload)}`,
  );
}

const runes = (text: string, flags = 0): PlainRecord => ({ type: RUNES, flags, payload: Buffer.from(text) });
const stranger = (text: string, flags: number = optional): PlainRecord => ({
  type: 0x18888,
  flags,
  payload: Buffer.from(text),
});

t.test('what a blob becomes', async (t) => {
  const header = headerOf(OAK, { version: { major: 1, minor: 7 } });
  const blob = blobOf(header, [runes('abc'), runes('xyz', 0x00010000), runes('', optional)]);
  const one = decodeEnvelope(convert(blob, way(OAK, PINE)));
  const { stream, ...rest } = one.header;
  t.strictSame(
    rest,
    {
      format: PINE.uuid,
      version: { major: 1, minor: 0 },
      model: header.model,
      parameters: header.parameters,
      producer: PRODUCER,
      features: [],
      other: { site: 'Gallehus', converted_from: 'org.devstate.test.oak 1.7' },
    },
    'its header',
  );
  t.not(stream, header.stream, 'a saving of its own');
  t.strictSame(listOf(convert(blob, way(OAK, PINE))), [
    '10000 0 cba',
    '10000 10000 zyx',
    '10000 1 ',
    '10001 0 \u0003',
  ]);
  t.strictSame(
    listOf(convert(blob, way(OAK, PINE, ROWAN))),
    ['10000 0 abc', '10000 10000 xyz', '10000 1 ', '10001 0 \u0003'],
    'over two converters, the end of the first before that of the second',
  );
  t.equal(decodeEnvelope(convert(blob, way(OAK, PINE, ROWAN))).header.format, ROWAN.uuid);

  const converter = new BlobConverter({ choose: () => way(OAK, PINE), producer: PRODUCER, write: () => {} });
  t.equal(converter.header, undefined);
  converter.push(blob.subarray(0, 48));
  t.equal(converter.header, undefined, 'not before the metadata are there');
  converter.push(blob.subarray(48));
  t.equal(converter.header?.format, PINE.uuid);
  let seen = '';
  convert(blob, [], undefined, {
    choose: ({ format }) => {
      seen = format;
      return way(OAK, PINE);
    },
  });
  t.equal(seen, OAK.uuid, 'the way is chosen by what the blob says it is');
});

t.test('without a converter a blob stays what it is', async (t) => {
  const minimal = new Uint8Array(fixture('minimal.bin'));
  t.ok(sameBytes(convert(minimal, []), minimal), 'byte for byte');
  t.ok(sameBytes(convert(minimal, [], [1]), minimal), 'one byte at a time');
  const newer = decodeEnvelope(new Uint8Array(fixture('newer-writer.bin')));
  const again = decodeEnvelope(convert(new Uint8Array(fixture('newer-writer.bin')), []));
  t.strictSame(again.header, newer.header, 'unknown metadata and a newer minor version pass');
  const plain = ({ records }: typeof newer): unknown =>
    records.map(({ type, flags, payload }) => [type, flags, toHex(payload)]);
  t.strictSame(plain(again), plain(newer), 'and so do unknown records, those of the envelope among them');
  t.ok(newer.records.some(({ type }) => type < 0x10000 && type !== EnvelopeRecord.opaque));
  const unknown = blobOf(headerOf(OAK), [stranger('mandatory', 0x00020000), stranger('optional')]);
  t.ok(sameBytes(convert(unknown, [], [7]), unknown), 'unknown records of the format, optional or not');
});

t.test('in pieces of any size', async (t) => {
  const record = fc.tuple(
    fc.constantFrom(RUNES, COUNT, 0x18888),
    fc.nat(0xffff),
    fc.uint8Array({ maxLength: 300 }),
  );
  const some = fc.array(record, { maxLength: 6 }).map((list) =>
    list.map(([type, flags, payload]) => ({
      type,
      flags: (flags * 0x10000 + (type === 0x18888 ? optional : 0)) >>> 0,
      payload,
    })),
  );
  const ways = [[], way(OAK, PINE), way(OAK, PINE, ROWAN), way(OAK, PINE, OAK)];
  /** All but what differs from one conversion to the next: the stream's UUID and what is computed over it. */
  const content = (blob: Uint8Array): unknown => {
    const { header, records, summary } = decodeEnvelope(blob);
    return [
      { ...header, stream: 0 },
      records.map(({ payload, ...one }) => ({ ...one, payload: toHex(payload) })),
      summary.length,
    ];
  };
  fc.assert(
    fc.property(
      some,
      fc.constantFrom(...ways),
      fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1 }),
      (list, path, sizes) => {
        const blob = blobOf(headerOf(OAK), list);
        const whole = content(convert(blob, path));
        for (const pieces of [[1], sizes, [32], [8]])
          if (JSON.stringify(content(convert(blob, path, pieces))) !== JSON.stringify(whole))
            throw new Error(`pieces of ${pieces}`);
      },
    ),
    { numRuns: 150, seed: 1 },
  );
  const long = new Uint8Array(3 * 2 ** 20).map((_, at) => (at * 7) >> 3);
  const blob = blobOf(headerOf(OAK), [
    { type: RUNES, flags: 0, payload: long },
    runes('abc'),
    { ...stranger(''), payload: long },
  ]);
  const whole = JSON.stringify(content(convert(blob, way(OAK, PINE))));
  for (const pieces of [[2 ** 20], [2 ** 20 - 1], [1, 2 ** 20], [4096], [65537]])
    t.ok(JSON.stringify(content(convert(blob, way(OAK, PINE), pieces))) === whole, `pieces of ${pieces}`);
});

t.test('what neither end understands is kept, there and back', async (t) => {
  const records = [stranger('one', optional | 0x00040000), runes('abc'), stranger('two')];
  const blob = blobOf(headerOf(OAK), records);
  const there = convert(blob, way(OAK, PINE));
  const oak = (type: string, flags: string, text: string): Uint8Array =>
    Buffer.concat([
      hex(`0000000b000040008000000000000001 0100 0000 ${type} ${flags} 00000000`),
      Buffer.from(text),
    ]);
  t.strictSame(
    decodeEnvelope(there).records.map(({ type, flags, payload }) => [type, flags, toHex(payload)]),
    [
      [EnvelopeRecord.kept, optional, toHex(oak('88880100', '00000400', 'one'))],
      [RUNES, 0, toHex(Buffer.from('cba'))],
      [EnvelopeRecord.kept, optional, toHex(oak('88880100', '00000000', 'two'))],
      [COUNT, 0, '01'],
    ],
    'with its format, type and flags',
  );
  const back = ['18888 40001 one', '10000 0 abc', '18888 1 two', '10001 0 \u0001'];
  t.strictSame(listOf(convert(there, way(PINE, OAK))), back, 'and back');
  t.strictSame(
    listOf(convert(convert(there, way(PINE, ROWAN)), way(ROWAN, PINE, OAK))),
    back,
    'by way of a third',
  );
  t.strictSame(listOf(convert(convert(there, []), way(PINE, OAK))), back, 'by way of one who only copies');

  // What the middle of a way does not know is the middle's.
  const fussy: Converter = {
    ...reverser(PINE, ROWAN),
    begin: () => ({ record: () => undefined, end: () => [] }),
  };
  const middle = decodeEnvelope(
    convert(blobOf(headerOf(OAK), [runes('abc', optional)]), [
      ...way(OAK, PINE),
      { ...fussy, begin: () => ({ record: ({ type }) => (type === COUNT ? [] : undefined), end: () => [] }) },
    ]),
  );
  t.equal(middle.records.length, 1);
  t.equal(toHex(middle.records[0]!.payload).slice(0, 36), `${PINE.uuid.replaceAll('-', '')}0100`);
  t.equal(
    codeThrownBy(() => convert(blobOf(headerOf(OAK), [runes('abc')]), [...way(OAK, PINE), fussy])),
    'DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN',
  );

  // A record of another version of the format is not one of this version.
  const version2 = convert(blobOf(headerOf(OAK, { version: { major: 2, minor: 0 } }), [stranger('two')]), [
    { ...reverser(OAK, PINE), from: { ...OAK, major: 2 } },
  ]);
  t.strictSame(
    decodeEnvelope(convert(version2, way(PINE, OAK))).records.map(({ type }) => type),
    [EnvelopeRecord.kept, COUNT],
    'it stays kept',
  );
  // A longer record than one kept record holds.
  const payload = new Uint8Array(16 * 2 ** 20).map((_, at) => at >> 12);
  const long = convert(blobOf(headerOf(OAK), [{ type: 0x19999, flags: optional, payload }]), way(OAK, PINE), [
    2 ** 20,
  ]);
  t.equal(decodeEnvelope(long).records.length, 3);
  const again = decodeEnvelope(convert(long, way(PINE, OAK), [2 ** 20])).records;
  t.equal(again[0]?.type, 0x19999);
  t.ok(sameBytes(again[0]!.payload, payload), 'the longest record there is');
});

t.test('kept records: any blob, there and back', async (t) => {
  const record = fc.record({
    type: fc.oneof(fc.constant(RUNES), fc.integer({ min: 0x10002, max: 0xffffffff })),
    flags: fc.nat(0xffff),
    payload: fc.uint8Array({ maxLength: 100 }),
  });
  fc.assert(
    fc.property(
      fc.array(record, { maxLength: 8 }),
      fc.constantFrom(way(PINE), way(PINE, ROWAN, PINE)),
      (list, more) => {
        const records = list.map(({ type, flags, payload }) => ({
          type,
          flags: ((type === RUNES ? 0 : optional) | (flags << 16)) >>> 0,
          payload,
        }));
        const there = convert(blobOf(headerOf(OAK), records), [...way(OAK, PINE), ...more]);
        t.strictSame(
          listOf(convert(there, way(PINE, OAK))).slice(0, -1),
          listOf(blobOf(headerOf(OAK), records)),
        );
      },
    ),
    { numRuns: 100, seed: 2 },
  );
});

t.test('refused by name', async (t) => {
  const convertTo = (blob: Uint8Array) => () => convert(blob, way(OAK, PINE));
  const says = (blob: Uint8Array, code: string, message: RegExp, what: string): void => {
    t.throws(convertTo(blob), { code, message }, what);
    t.throws(() => convert(blob, way(OAK, PINE), [1]), { code, message }, `${what}, byte by byte`);
  };
  says(
    blobOf(headerOf(OAK), [runes('abc'), stranger('mandatory', 0)]),
    'DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN',
    /org\.devstate\.test\.oak has no record type 0x00018888 .*not optional.*record 1, offset \d+/,
    'a mandatory record of unknown type',
  );
  const opaque = { type: EnvelopeRecord.opaque, flags: 0, payload: Buffer.from('foreign') };
  says(
    blobOf(headerOf(OAK), [opaque]),
    'DEVSTATE_E_ENVELOPE_RECORD_UNKNOWN',
    /type 2 cannot be converted.*record 0/,
    'bytes of a foreign stream',
  );
  says(
    blobOf(headerOf(OAK, { version: { major: 2, minor: 1 } }), []),
    'DEVSTATE_E_FORMAT_VERSION',
    /org\.devstate\.test\.oak 2\.1, .*reads org\.devstate\.test\.oak 1/,
    'a newer major version',
  );
  says(blobOf(headerOf(ROWAN), []), 'DEVSTATE_E_FORMAT_VERSION', new RegExp(ROWAN.uuid), 'another format');
  t.equal(
    codeThrownBy(convertTo(blobOf(headerOf(OAK, { version: { major: 1, minor: 65535 } }), []))),
    '',
    'a newer minor one is taken',
  );

  const { header, records } = piecesOf(blobOf(headerOf(OAK), [runes('abc')]));
  const featured = forgeHeader(header, { 32: [1] });
  says(new Uint8Array(Buffer.concat([featured])), 'DEVSTATE_E_ENVELOPE_HEADER', /flag/, 'header flags');
  t.equal(
    codeThrownBy(convertTo(new Uint8Array(Buffer.concat([header, ...records])))),
    'DEVSTATE_E_ENVELOPE_TRUNCATED',
  );
  const kept = (payload: Uint8Array): Uint8Array =>
    new Uint8Array(
      Buffer.concat([header, forgeRecord(0, { type: EnvelopeRecord.kept, flags: optional, payload })]),
    );
  says(
    kept(new Uint8Array(8)),
    'DEVSTATE_E_ENVELOPE_RECORD',
    /kept record.*record 0/,
    'a kept record that is none',
  );
  const begun = hex('0000000b000040008000000000000001 0100 0000 88880100 00000000 01000000');
  says(
    blobOf(headerOf(OAK), [{ type: EnvelopeRecord.kept, flags: optional, payload: begun }]),
    'DEVSTATE_E_ENVELOPE_RECORD',
    /does not continue/,
    'a kept record that does not go on',
  );
  const refusing = {
    ...reverser(OAK, PINE),
    begin: () => {
      throw new RangeError('begin');
    },
  };
  t.throws(() => convert(blobOf(headerOf(OAK), []), [refusing]), { message: 'begin' });
  const failing: Converter = {
    ...reverser(OAK, PINE),
    begin: () => ({
      record: () => {
        throw new RangeError('too many runes');
      },
      end: () => [],
    }),
  };
  t.throws(() => convert(blobOf(headerOf(OAK), [runes('a')]), [failing]), {
    code: 'DEVSTATE_E_INTERNAL',
    message: /too many runes \(record 0, offset \d+\)/,
  });
});

t.test('cut at every length, flipped at every byte', async (t) => {
  const blob = blobOf(headerOf(OAK), [runes('abc'), stranger('one')]);
  const codes = new Set<string>();
  for (let length = 0; length < blob.length; length++)
    codes.add(codeThrownBy(() => convert(blob.slice(0, length), way(OAK, PINE))));
  t.strictSame([...codes], ['DEVSTATE_E_ENVELOPE_TRUNCATED']);
  const unnoticed: string[] = [];
  for (let at = 0; at < blob.length; at++) {
    const damaged = blob.slice();
    damaged[at]! ^= 0x41;
    const code = codeThrownBy(() => convert(damaged, way(OAK, PINE), [11]));
    if (!/^DEVSTATE_E_(ENVELOPE|FORMAT)_/.test(code)) unnoticed.push(`${at}: ${code}`);
  }
  t.strictSame(unnoticed, []);
  t.equal(
    codeThrownBy(() => convert(new Uint8Array([...blob, 0]), way(OAK, PINE))),
    'DEVSTATE_E_ENVELOPE_TRAILING',
  );
  t.equal(
    codeThrownBy(() => convert(encodeBlob(MINIMAL_RECORDS), [])),
    '',
    'a sound one passes',
  );
});
