// SPDX-License-Identifier: Apache-2.0
/** CRC-32C: the vectors of RFC 3720 appendix B.4, and the instruction against the tables. */

import fc from 'fast-check';
import t from 'tap';
import { native } from '../../src/native/index.js';

const VECTORS: [string, Uint8Array, number][] = [
  ['nothing', new Uint8Array(0), 0],
  ['"123456789"', Buffer.from('123456789'), 0xe3069283],
  ['32 zeros', new Uint8Array(32), 0x8a9136aa],
  ['32 ones', new Uint8Array(32).fill(0xff), 0x62a8ab43],
  ['32 ascending', Uint8Array.from({ length: 32 }, (_, i) => i), 0x46dd794e],
  ['32 descending', Uint8Array.from({ length: 32 }, (_, i) => 31 - i), 0x113fdb5c],
];

t.test('known answers', async (t) => {
  for (const [name, bytes, crc] of VECTORS) {
    t.equal(native.crc32c(bytes, 0, bytes.length, 0), crc, name);
    t.equal(native.crc32cPortable(bytes, 0, bytes.length, 0), crc, `${name}, tables`);
  }
});

/** Long enough for every loop of the implementation: 3 x 4096, 3 x 256, words and bytes. */
const data = Uint8Array.from({ length: 3 * 4096 * 2 + 3 * 256 * 2 + 31 }, (_, i) => (i * 2654435761) >>> 13);

t.test('the instruction and the tables agree at every length and alignment', async (t) => {
  fc.assert(
    fc.property(
      fc.nat(64),
      fc.nat(data.length - 64),
      fc.integer({ min: 0, max: 0xffffffff }),
      (at, length, seed) => {
        const fast = native.crc32c(data, at, length, seed);
        return fast === native.crc32cPortable(data, at, length, seed);
      },
    ),
    { numRuns: 500 },
  );
  t.pass('no counterexample');
});

t.test('a CRC continues where another ended', async (t) => {
  const whole = native.crc32c(data, 0, data.length, 0);
  fc.assert(
    fc.property(fc.nat(data.length), (cut) => {
      const first = native.crc32c(data, 0, cut, 0);
      return native.crc32c(data, cut, data.length - cut, first) === whole;
    }),
  );
  t.pass('no counterexample');
});

t.test('a range outside the bytes is refused', async (t) => {
  const bytes = new Uint8Array(10);
  t.throws(() => native.crc32c(bytes, 0, 11, 0), RangeError);
  t.throws(() => native.crc32c(bytes, 11, 0, 0), RangeError);
  t.throws(() => native.crc32c(bytes, -1, 1, 0), TypeError);
  t.throws(() => native.crc32c('text' as unknown as Uint8Array, 0, 1, 0), TypeError);
});
