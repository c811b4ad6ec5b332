// SPDX-License-Identifier: Apache-2.0
/** DEVSTATE_VALUES as bytes written by hand: names, values, and what is neither. */

import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import {
  decodeNamedValue,
  decodeValue,
  decodeValueName,
  decodeValueNames,
  Errno,
  encodeNamedValue,
  encodeValue,
  encodeValueNames,
  MAX_STATE_VALUES,
  MAX_VALUE_LENGTH,
  type StateValue,
} from '../../src/wire/index.js';
import { hex, refusal, toHex, viewOf } from '../support/hex.js';

/** Of one to four bytes, and those that a careless decoder drops. */
const CHARACTER = fc.constantFrom('\0', 'a', '.', '[', 'ä', '€', '😀', '\ufeff', '\uffff');
const UUID = '00112233 44556677 8899aabb ccddeeff';

t.test('values, byte by byte', async (t) => {
  const values: [StateValue, string][] = [
    [0, '01 00000000 00000000'],
    [0x1234, '01 34120000 00000000'],
    [0x1_0000_0001, '01 01000000 01000000'],
    [Number.MAX_SAFE_INTEGER, '01 ffffffff ffff1f00'],
    [false, '02 00'],
    [true, '02 01'],
    ['', '03'],
    ['ä€', '03 c3a4 e282ac'],
    ['\ufeffmark', '03 efbbbf 6d61726b'],
    [new Uint8Array(0), '04'],
    [Uint8Array.of(0, 255), '04 00ff'],
  ];
  for (const [value, bytes] of values) {
    t.equal(toHex(encodeValue(value)), toHex(hex(bytes)), bytes);
    t.strictSame(decodeValue(hex(bytes)), value, bytes);
    t.strictSame(
      decodeNamedValue(encodeNamedValue('registers.cc', value)),
      { name: 'registers.cc', value },
      `${bytes}, with a name`,
    );
  }
  t.equal(toHex(encodeNamedValue('cä', 5)), toHex(hex('0300 63c3a4 01 05000000 00000000')));
  t.strictSame(decodeNamedValue(hex('0300 63c3a4 02 01')), { name: 'cä', value: true });
  t.strictSame(decodeNamedValue(hex('0000 02 01')), { name: '', value: true });
  const given = hex('04 0102');
  const taken = decodeValue(given);
  given.fill(9);
  t.strictSame(taken, Uint8Array.of(1, 2), 'it does not share the bytes of the message');
});

t.test('names, byte by byte', async (t) => {
  const names = { uuid: hex(UUID), major: 0x0102, minor: 0x0304, names: ['a', '', 'cä', '\ufeffb'] };
  const bytes = hex(`${UUID} 0201 0403 04000000 0100 61 0000 0300 63c3a4 0400 efbbbf62`);
  t.equal(toHex(encodeValueNames(names)), toHex(bytes));
  t.strictSame(decodeValueNames(bytes), names);
  t.strictSame(
    decodeValueNames(new Uint8Array([...bytes, 1, 2, 3])),
    names,
    'what is behind them is not read',
  );
  const none = { ...names, names: [] };
  t.equal(toHex(encodeValueNames(none)), toHex(hex(`${UUID} 0201 0403 00000000`)));
  t.strictSame(decodeValueNames(encodeValueNames(none)), none);
  for (let length = 0; length < bytes.length; length++)
    t.equal(
      refusal(() => decodeValueNames(bytes.slice(0, length))),
      Errno.EINVAL,
      `cut at ${length}`,
    );
  const claims = (count: number): Uint8Array => {
    const changed = bytes.slice();
    viewOf(changed).setUint32(20, count, true);
    return changed;
  };
  t.equal(
    refusal(() => decodeValueNames(claims(5))),
    Errno.EINVAL,
    'more than there are',
  );
  t.equal(
    refusal(() => decodeValueNames(claims(MAX_STATE_VALUES))),
    Errno.EINVAL,
  );
  t.equal(
    refusal(() => decodeValueNames(claims(MAX_STATE_VALUES + 1))),
    Errno.EPROTO,
    'more than may be',
  );
  t.equal(
    refusal(() => decodeValueNames(claims(0xffffffff))),
    Errno.EPROTO,
  );
  const most = { ...names, names: Array.from({ length: MAX_STATE_VALUES }, (_, i) => `v${i}`) };
  const decoded = decodeValueNames(encodeValueNames(most));
  t.equal(decoded.names.length, MAX_STATE_VALUES, 'as many as may be');
  t.equal(decoded.names.at(-1), 'v65535');
});

t.test('what is no value', async (t) => {
  const wrong: [string, string, number][] = [
    ['nothing', '', Errno.EPROTO],
    ['no kind', '00', Errno.EPROTO],
    ['a kind of later versions', '05 00', Errno.EPROTO],
    ['a number cut', '01 00000000 000000', Errno.EINVAL],
    ['a number that is not there', '01', Errno.EINVAL],
    ['2^53', '01 00000000 00002000', Errno.EINVAL],
    ['2^64 - 1', '01 ffffffff ffffffff', Errno.EINVAL],
    ['a boolean that is not there', '02', Errno.EINVAL],
  ];
  for (const [what, bytes, errno] of wrong) {
    t.equal(
      refusal(() => decodeValue(hex(bytes))),
      errno,
      what,
    );
    t.equal(
      refusal(() => decodeNamedValue(hex(`0100 61 ${bytes}`))),
      errno,
      `${what}, with a name`,
    );
  }
  const named: [string, string][] = [
    ['no name', ''],
    ['half a length', '01'],
    ['a name that is not there', '0100'],
    ['a name cut', '0300 6162'],
    ['a name longer than any', `0101 ${'61'.repeat(257)} 02 01`],
    ['a length of 65535', 'ffff 61'],
  ];
  for (const [what, bytes] of named)
    t.equal(
      refusal(() => decodeNamedValue(hex(bytes))),
      Errno.EINVAL,
      what,
    );
  const name = 'x'.repeat(256);
  t.strictSame(decodeNamedValue(encodeNamedValue(name, true)), { name, value: true }, 'the longest name');
});

t.test('values of any length up to 64 KiB', async (t) => {
  t.equal(MAX_VALUE_LENGTH, 65536);
  for (const value of [new Uint8Array(65536).fill(7), 'x'.repeat(65536), 'ä'.repeat(32768)]) {
    t.equal(encodeValue(value).length, 65537);
    t.strictSame(decodeValue(encodeValue(value)), value);
  }
  for (const value of [new Uint8Array(65537), 'x'.repeat(65537), 'ä'.repeat(32769)])
    t.equal(
      refusal(() => encodeValue(value)),
      Errno.E2BIG,
      'longer ones are not sent',
    );
  for (const kind of [3, 4])
    t.equal(
      refusal(() => decodeValue(new Uint8Array(65538).fill(kind))),
      Errno.E2BIG,
      'nor taken',
    );
  t.equal(
    refusal(() => encodeNamedValue('a', new Uint8Array(65537))),
    Errno.E2BIG,
  );
});

t.test('numbers that are none of them', async (t) => {
  for (const value of [-1, -0.5, 0.1, 1.5, 2 ** 53, 2 ** 64, Number.NaN, Infinity, -Infinity]) {
    t.equal(
      refusal(() => encodeValue(value)),
      Errno.EINVAL,
      String(value),
    );
    t.throws(() => encodeNamedValue('a', value), {
      message: new RegExp(`the value ${value} is no whole number`),
    });
  }
});

t.test('the name that is asked for', async (t) => {
  t.equal(decodeValueName(hex('')), '');
  t.equal(decodeValueName(hex('efbbbf 62')), '\ufeffb', 'a byte order mark is a part of it');
  t.equal(
    refusal(() => decodeValueName(new Uint8Array(257).fill(0x61))),
    Errno.EINVAL,
  );
});

t.test('any values come back, any bytes are a value or are refused', async (t) => {
  const text = fc.string({ unit: CHARACTER });
  const value: fc.Arbitrary<StateValue> = fc.oneof(fc.maxSafeNat(), fc.boolean(), text, fc.uint8Array());
  const name = fc.string({ unit: CHARACTER, maxLength: 60 });
  fc.assert(
    fc.property(name, value, fc.array(name, { maxLength: 5 }), (one, content, names) => {
      const again = decodeNamedValue(encodeNamedValue(one, content));
      if (!isDeepStrictEqual(again, { name: one, value: content })) throw new Error('another value');
      const list = { uuid: hex(UUID), major: 1, minor: 2, names };
      if (!isDeepStrictEqual(decodeValueNames(encodeValueNames(list)), list)) throw new Error('other names');
    }),
    { numRuns: 300, seed: 1 },
  );
  const small = fc.array(fc.nat(6), { maxLength: 60 }).map((bytes) => Uint8Array.from(bytes));
  let taken = 0;
  fc.assert(
    fc.property(fc.oneof(small, fc.uint8Array({ maxLength: 80 })), (bytes) => {
      if (refusal(() => decodeValue(bytes)) === 0) taken++;
      if (refusal(() => decodeNamedValue(bytes)) === 0) taken++;
      const head = new Uint8Array(24 + bytes.length);
      viewOf(head).setUint32(20, bytes.length % 7 === 0 ? 0xffff : bytes.length % 7, true);
      head.set(bytes, 24);
      if (refusal(() => decodeValueNames(head)) === 0) taken++;
      refusal(() => decodeValueNames(bytes));
    }),
    { numRuns: 3000, seed: 2 },
  );
  t.ok(taken > 500, `${taken} were`);
});
