// SPDX-License-Identifier: Apache-2.0
/** Packed documents: what goes in comes out, and hostile bytes cost no more than their length. */

import fc from 'fast-check';
import { Packr, unpack } from 'msgpackr';
import t from 'tap';
import {
  documentBytes,
  MAX_DOCUMENT_DEPTH,
  MAX_DOCUMENT_VALUES,
  packDocument,
  unpackDocument,
} from '../../src/documents/index.js';
import type { DevstateError } from '../../src/errors.js';

const hex = (text: string): Uint8Array => new Uint8Array(Buffer.from(text.replaceAll(' ', ''), 'hex'));

const text = fc.string({ unit: 'grapheme' });
const key = text.filter((name) => name !== '__proto__');
const { document } = fc.letrec<{ document: unknown }>((tie) => ({
  document: fc.oneof(
    { maxDepth: 5 },
    fc.constant(null),
    fc.boolean(),
    fc.integer(),
    fc.maxSafeInteger(),
    fc.double({ noNaN: true }).map((value) => value + 0),
    text,
    fc.uint8Array({ maxLength: 300 }),
    fc.array(tie('document'), { maxLength: 20 }),
    fc.dictionary(key, tie('document'), { maxKeys: 20, noNullPrototype: true }),
  ),
}));

/** As plain as JSON, with bytes as arrays of a class of their own. */
function plain(value: unknown): unknown {
  if (value instanceof Uint8Array) return { bytes: Array.from(value) };
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, plain(member)]));
}

t.test(
  'what goes in comes out, the same bytes each time, and any reader of MessagePack has it',
  async (t) => {
    fc.assert(
      fc.property(document, (value) => {
        const packed = packDocument(value);
        t.strictSame(plain(unpackDocument(packed)), plain(value));
        t.same(packDocument(value), packed);
        t.strictSame(plain(unpack(packed)), plain(value));
      }),
      { numRuns: 300 },
    );
  },
);

t.test('as JSON has it: members that are undefined are left out, and nothing is null', async (t) => {
  t.strictSame(unpackDocument(packDocument({ a: undefined, b: 1 })), { b: 1 });
  t.equal(unpackDocument(packDocument(undefined)), null);
  t.strictSame(unpackDocument(packDocument([2 ** 53 - 1, -(2 ** 53) + 1, 2 ** 32])), [
    2 ** 53 - 1,
    -(2 ** 53) + 1,
    2 ** 32,
  ]);
  // As another writer may have them.
  t.equal(unpackDocument(hex('cf 0000 0001 0000 0000')), 2 ** 32);
  t.equal(unpackDocument(hex('d3 ffff ffff 0000 0000')), -(2 ** 32));
});

t.test('what comes out shares no memory with the message', async (t) => {
  const packed = new Uint8Array(packDocument({ bytes: Uint8Array.of(1, 2, 3) }));
  const { bytes } = unpackDocument(packed) as { bytes: Uint8Array };
  packed.fill(0);
  t.same([...bytes], [1, 2, 3]);
});

t.test('what is no part of a document is not packed', async (t) => {
  const circle: unknown[] = [];
  circle.push(circle);
  for (const value of [new Map([[1, 2]]), new Date(), [undefined], circle, () => {}, new Error('x')])
    t.throws(() => packDocument(value), { code: 'DEVSTATE_E_HANDOFF_BUNDLE' }, String(value));
  t.throws(() => packDocument(JSON.parse('{"__proto__": 1}')), { message: /the key __proto__/ });
});

t.test('depth and number of values are bounded, on both sides', async (t) => {
  let deep: unknown = null;
  for (let i = 0; i < MAX_DOCUMENT_DEPTH; i++) deep = [deep];
  t.strictSame(unpackDocument(packDocument(deep)), deep);
  t.throws(() => packDocument([deep]), { message: /more than 64 levels/ });
  t.throws(() => unpackDocument(new Uint8Array(1 << 20).fill(0x91)), { message: /more than 64 levels/ });
  const many = Buffer.alloc(5 + MAX_DOCUMENT_VALUES, 0xc0);
  many[0] = 0xdd;
  many.writeUInt32BE(MAX_DOCUMENT_VALUES, 1);
  t.throws(() => unpackDocument(many), { message: /more than 2097152 values/ });
  t.throws(() => unpackDocument(packDocument([1, 2, 3]), 3), { message: /more than 3 values/ });
});

t.test('hostile documents, each refused in words', async (t) => {
  const cases: [string, string, RegExp][] = [
    ['nothing', '', /no end/],
    ['a second value', 'c0 c0', /1 bytes behind it/],
    ['text that is cut', 'a5 6162', /no end/],
    ['text with half a length', 'da 01', /no end/],
    ['bytes that are cut', 'c6 ffff ffff 00', /no end/],
    ['a number that is cut', 'cb 0000', /no end/],
    ['a number behind which nothing is', 'cc', /no end/],
    ['an array of four thousand million', 'dd ffff ffff', /no end/],
    ['arrays that claim it within each other', 'dd 00ff ffff dd 00ff ffff dd 00ff ffff', /no end/],
    ['a map of more than there is', 'df ffff ffff a161 c0', /no end/],
    ['a map without its last value', '82 a161 c0 a162', /no end/],
    ['a key that is a number', '81 01 c0', /a key that is no text/],
    ['a key that is bytes', '81 c40161 c0', /a key that is no text/],
    ['a key that is a map', '81 80 c0', /a key that is no text/],
    ['a key that is a float', '81 ca00000000 c0', /a key that is no text/],
    ['the key __proto__', '81 a9 5f5f70726f746f5f5f 80', /the key __proto__/],
    ['the same, in a longer form', '81 d9 09 5f5f70726f746f5f5f 80', /the key __proto__/],
    ['text that is not UTF-8', 'a2 c328', /not UTF-8/],
    ['a surrogate as UTF-8', 'a3 eda080', /not UTF-8/],
    ['a reserved type', 'c1', /a value of type 0xc1/],
    ['an extension', 'd4 00 00', /a value of type 0xd4/],
    ['a longer extension', 'c7 01 01 00', /a value of type 0xc7/],
    ['a record of msgpackr', 'd4 72 40 91 a161 01', /a value of type 0xd4/],
    ['a time', 'd6 ff 00000000', /a value of type 0xd6/],
  ];
  for (const [name, bytes, message] of cases)
    t.throws(() => unpackDocument(hex(bytes)), { code: 'DEVSTATE_E_HANDOFF_BUNDLE', message }, name);
});

/** Either a document, or an error of ours. */
function verdict(bytes: Uint8Array): unknown {
  try {
    return plain(unpackDocument(bytes));
  } catch (error) {
    if ((error as DevstateError).code !== 'DEVSTATE_E_HANDOFF_BUNDLE') throw error;
    return error;
  }
}

t.test('any bytes are a document, which packed again is the same, or refused', async (t) => {
  let taken = 0;
  const check = (bytes: Uint8Array): void => {
    const value = verdict(bytes);
    if (value instanceof Error) return;
    taken++;
    const again = unpackDocument(packDocument(unpackDocument(bytes)));
    t.strictSame(plain(again), value);
  };
  const heads = fc.constantFrom(
    0x81,
    0x92,
    0xa1,
    0xc0,
    0xc4,
    0xc7,
    0xca,
    0xcf,
    0xd3,
    0xd4,
    0xd9,
    0xdc,
    0xdd,
    0xde,
    0xdf,
  );
  const noise = fc.array(fc.oneof(heads, fc.integer({ min: 0, max: 255 })), { maxLength: 40 });
  fc.assert(
    fc.property(noise, (bytes) => check(Uint8Array.from(bytes))),
    { numRuns: 20_000 },
  );
  // Documents with one byte changed, and cut ones.
  const change = fc.record({ at: fc.nat(), byte: fc.integer({ min: 0, max: 255 }), length: fc.nat() });
  fc.assert(
    fc.property(document, change, (value, { at, byte, length }) => {
      const bytes = new Uint8Array(packDocument(value));
      t.ok(verdict(bytes.subarray(0, length % bytes.length)) instanceof Error, 'one that is cut');
      bytes[at % bytes.length] = byte;
      check(bytes);
    }),
    { numRuns: 2000 },
  );
  t.ok(taken > 100, `${taken} were documents`);
});

t.test('a refused document leaves the codec as it was', async (t) => {
  const records = new Packr().pack([{ a: 1 }, { a: 2 }]);
  t.throws(() => unpackDocument(records));
  t.strictSame(unpackDocument(packDocument({ a: [1, 'x'] })), { a: [1, 'x'] });
});

t.test('bytes of a schema', async (t) => {
  const schema = documentBytes(2);
  t.ok(schema.safeParse(new Uint8Array(2)).success);
  for (const wrong of [new Uint8Array(3), 'ab', [1], null]) t.notOk(schema.safeParse(wrong).success);
  t.ok(documentBytes().safeParse(new Uint8Array(100)).success);
});
