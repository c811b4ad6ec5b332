// SPDX-License-Identifier: Apache-2.0
/** The metadata map: its MessagePack subset against msgpackr, its limits, and the names that have a meaning. */
import fc from 'fast-check';
import { Packr, unpack } from 'msgpackr';
import t from 'tap';
import { crc32c } from '../../../src/formats/envelope/crc32c.js';
import { type EnvelopeHeader, encodeHeader } from '../../../src/formats/envelope/header.js';
import {
  decodeMetadataMap,
  encodeMetadataMap,
  type MetadataMap,
} from '../../../src/formats/envelope/msgpack.js';
import { parseUuid } from '../../../src/formats/uuid.js';
import { codeOf, codeThrownBy, forgeEnd, forgeHeader, MINIMAL_HEADER } from '../blobs.js';

const METADATA = 'DEVSTATE_E_ENVELOPE_METADATA';
const hex = (text: string) => new Uint8Array(Buffer.from(text.replaceAll(' ', ''), 'hex'));

const arbitraryKey = fc.stringMatching(/^[A-Za-z][A-Za-z0-9._-]{0,63}$/);
/** Numbers are within ±2^31: msgpackr writes larger ones as floats. */
const arbitraryMap = (numbers: fc.Arbitrary<number>): fc.Arbitrary<MetadataMap> =>
  fc.letrec<{ map: MetadataMap; value: MetadataMap[string] }>((tie) => ({
    map: fc.dictionary(arbitraryKey, tie('value'), { maxKeys: 20, noNullPrototype: true }),
    value: fc.oneof(
      { maxDepth: 3 },
      fc.boolean(),
      numbers,
      fc.string({ unit: 'binary', maxLength: 300 }),
      fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)),
      fc.array(tie('value'), { maxLength: 20 }),
      tie('map'),
    ),
  })).map;

t.test('agrees with msgpackr in both directions', async (t) => {
  // By default it writes the size of every map in 16 bits.
  const packr = new Packr({ useRecords: false, variableMapSize: true });
  const property = fc.property(arbitraryMap(fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 })), (map) => {
    const ours = encodeMetadataMap(map);
    const theirs = unpack(ours) as MetadataMap;
    const back = decodeMetadataMap(new Uint8Array(packr.pack(map)));
    return (
      Buffer.from(encodeMetadataMap(theirs)).equals(ours) && Buffer.from(encodeMetadataMap(back)).equals(ours)
    );
  });
  fc.assert(property, { numRuns: 500 });
  t.pass();
});

t.test('every value comes back as it was', async (t) => {
  const numbers = [0, 127, 128, 255, 256, 65535, 65536, 2 ** 32 - 1, 2 ** 32, Number.MAX_SAFE_INTEGER];
  const negative = [
    -1,
    -32,
    -33,
    -128,
    -129,
    -32768,
    -32769,
    -(2 ** 31),
    -(2 ** 31) - 1,
    Number.MIN_SAFE_INTEGER,
  ];
  const map = {
    numbers: [...numbers, ...negative],
    text: ['', 'x'.repeat(31), 'x'.repeat(32), 'x'.repeat(255), 'x'.repeat(256), 'ü€😀\ufeff'],
    bytes: [new Uint8Array(0), new Uint8Array(255).fill(1), new Uint8Array(256).fill(2)],
    many: new Array(16).fill(true),
    constructor: { toString: false },
  };
  t.same(decodeMetadataMap(encodeMetadataMap(map)), map);
  const property = fc.property(arbitraryMap(fc.maxSafeInteger()), (value) => {
    const bytes = encodeMetadataMap(value);
    return Buffer.from(encodeMetadataMap(decodeMetadataMap(bytes))).equals(bytes);
  });
  fc.assert(property, { numRuns: 300 });
});

t.test('refuses what is outside the subset', async (t) => {
  const cases: [string, string][] = [
    ['nothing', ''],
    ['no map', '01'],
    ['bytes after the map', '80 00'],
    ['nil', '81 a161 c0'],
    ['float32', '81 a161 ca 3f800000'],
    ['float64', '81 a161 cb 3ff0000000000000'],
    ['ext', '81 a161 d4 01 00'],
    ['a record extension of msgpackr', 'd4 72 40 91 a161 01'],
    ['a timestamp', '81 a161 d6 ff 00000000'],
    ['the unused 0xc1', '81 a161 c1'],
    ['2^53', '81 a161 cf 0020000000000000'],
    ['-2^53', '81 a161 d3 ffe0000000000000'],
    ['a key twice', '82 a161 01 a161 02'],
    ['a key that is a number', '81 01 01'],
    ['a key that is a map', '81 80 01'],
    ['an empty key', '81 a0 01'],
    ['the key __proto__', '81 a9 5f5f70726f746f5f5f 80'],
    ['a key of 65 characters', `81 d941 ${'61'.repeat(65)} 01`],
    ['text that is not UTF-8', '81 a161 a2 c328'],
    ['text that is an encoded surrogate', '81 a161 a3 eda080'],
    ['text past the end', '81 a161 a5 6161'],
    ['bytes past the end', '81 a161 c6 ffffffff'],
    ['a list past the end', '81 a161 dd ffffffff'],
    ['a map past the end', 'df ffffffff'],
    ['a number past the end', '81 a161 cf 00000000'],
    ['a map without its value', '81 a161'],
    ['a number longer than it needs to be', '81 a161 cc 01'],
    ['a negative number longer than it needs to be', '81 a161 d0 ff'],
    ['a positive number as a signed one', '81 a161 d1 0100'],
    ['a whole number as a float', '81 a161 ca 3f800000'],
    ['text with a longer length', '81 a161 d901 61'],
    ['a key with a longer length', '81 d90161 01'],
    ['bytes with a longer length', '81 a161 c50001 00'],
    ['a list with a longer length', '81 a161 dc0001 01'],
    ['a map with a longer length', 'de0001 a161 01'],
    ['text of 64 KiB', `81 a161 db00010000 ${'61'.repeat(65536)}`],
    ['lists nested deeper than 8', `81 a161 ${'91'.repeat(8)} 01`],
    ['lists nested 60,000 deep', `81 a161 ${'91'.repeat(60_000)} 01`],
  ];
  for (const [what, text] of cases)
    t.equal(
      codeThrownBy(() => decodeMetadataMap(hex(text))),
      METADATA,
      what,
    );
  t.same(decodeMetadataMap(hex(`81 a161 ${'91'.repeat(7)} 01`)), { a: [[[[[[[1]]]]]]] }, 'nested 8 deep');
  t.throws(() => decodeMetadataMap(hex('81 a161 c0'), 48), { code: METADATA, offset: 51 }, 'where nil is');
  t.throws(() => decodeMetadataMap(hex('82 a161 01 a16202 a161 03'), 48), { code: METADATA, offset: 48 });
  t.throws(() => decodeMetadataMap(hex('82 a161 01 a162 cc02'), 48), { code: METADATA, offset: 54 });
});

t.test('does not write what it would not read', async (t) => {
  const deep = (levels: number): MetadataMap => (levels === 1 ? {} : { a: deep(levels - 1) });
  const cases: [string, object][] = [
    ['a fraction', { a: 1.5 }],
    ['NaN', { a: Number.NaN }],
    ['2^53', { a: 2 ** 53 }],
    ['null', { a: null }],
    ['a function', { a: () => 0 }],
    ['a lone surrogate', { a: '\ud800' }],
    ['a key that is no name', { 'a b': 1 }],
    ['nested too deep', deep(9)],
    ['a list nested too deep', { a: [[[[[[[[1]]]]]]]] }],
    ['text of 64 KiB', { a: 'x'.repeat(65536) }],
  ];
  for (const [what, map] of cases)
    t.equal(
      codeThrownBy(() => encodeMetadataMap(map as MetadataMap)),
      METADATA,
      what,
    );
  t.same(decodeMetadataMap(encodeMetadataMap(deep(8))), deep(8));
});

t.test('arbitrary bytes are refused with the code, or are a map', async (t) => {
  const bytes = fc.oneof(
    fc.uint8Array({ maxLength: 60 }),
    fc.uint8Array({ maxLength: 60 }).map((tail) => Uint8Array.of(0x81, 0xa1, 0x61, ...tail)),
  );
  const property = fc.property(bytes, (input) => {
    const code = codeThrownBy(() => decodeMetadataMap(input));
    return code === '' || code === METADATA;
  });
  fc.assert(property, { numRuns: 5000 });
  t.pass();
});

t.test('the names that have a meaning', async (t) => {
  const sound: MetadataMap = {
    model: 'm',
    producer: { name: 'p', version: '1' },
    stream: new Uint8Array(16),
  };
  const blobOf = (metadata: MetadataMap) => {
    const bytes = encodeMetadataMap(metadata);
    const fixed = Buffer.from(encodeHeader(MINIMAL_HEADER, crc32c).subarray(0, 48));
    fixed.writeUInt32LE(bytes.length, 36);
    fixed.writeUInt32LE(crc32c(bytes), 40);
    const padding = Buffer.alloc(-bytes.length & 7);
    const header = Buffer.concat([forgeHeader(fixed, {}), bytes, padding]);
    return Buffer.concat([header, forgeEnd(header, [])]);
  };
  const cases: [string, MetadataMap, string][] = [
    ['the least there must be', {}, ''],
    ['an unknown name', { later: [1, { a: 'b' }] }, ''],
    ['parameters of each type', { parameters: { a: true, b: -5, c: '' } }, ''],
    ['a model that is no text', { model: 1 }, METADATA],
    ['an empty model', { model: '' }, METADATA],
    ['a producer that is no map', { producer: 'p' }, METADATA],
    ['a producer without a version', { producer: { name: 'p' } }, METADATA],
    ['a producer whose name is a number', { producer: { name: 1, version: '1' } }, METADATA],
    ['parameters that are no map', { parameters: [1] }, METADATA],
    ['a parameter that is a list', { parameters: { a: [1] } }, METADATA],
    ['a parameter that is bytes', { parameters: { a: new Uint8Array(1) } }, METADATA],
    ['a stream that is text', { stream: 'ffb52a17-6d23-4071-bc66-ecaaf72ae18c' }, METADATA],
    ['a stream of 15 bytes', { stream: new Uint8Array(15) }, METADATA],
    ['features that are no list', { features: 'zstd' }, METADATA],
    ['a feature that is a number', { features: [1] }, METADATA],
    ['a feature that is no name', { features: ['a b'] }, METADATA],
    ['a feature twice', { features: ['a', 'a'] }, METADATA],
    ['an unknown feature', { features: ['a'] }, 'DEVSTATE_E_ENVELOPE_FEATURE'],
  ];
  for (const [what, change, code] of cases) t.equal(codeOf(blobOf({ ...sound, ...change })), code, what);
  for (const name of Object.keys(sound)) {
    const { [name]: _, ...without } = sound;
    t.equal(codeOf(blobOf(without)), METADATA, `${name} is missing`);
  }
});

t.test('a header that no reader accepts is not written', async (t) => {
  const cases: [string, Partial<EnvelopeHeader>][] = [
    ['the nil UUID', { format: parseUuid('00000000-0000-0000-0000-000000000000') }],
    ['an empty model', { model: '' }],
    ['a version beyond 16 bits', { version: { major: 65536, minor: 0 } }],
    ['a fractional version', { version: { major: 1, minor: 0.5 } }],
    ['a parameter that is a fraction', { parameters: { a: 0.5 } }],
    ['a parameter that is no name', { parameters: { 'a=b': 1 } }],
    ['more than 64 KiB', { other: { a: 'x'.repeat(40_000), b: 'x'.repeat(40_000) } }],
    ['a name with a meaning among the others', { other: { model: 'x' } }],
  ];
  for (const [what, change] of cases) {
    t.equal(
      codeThrownBy(() => encodeHeader({ ...MINIMAL_HEADER, ...change }, crc32c)),
      METADATA,
      what,
    );
  }
});
