// SPDX-License-Identifier: Apache-2.0
/** DEVSTATE_FORMATS as bytes written by hand: what a device offers, what a manager selects, and what is no list at all. */

import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import {
  decodeFormatOffers,
  decodeFormatSelection,
  Errno,
  encodeFormatOffers,
  encodeFormatSelection,
  FORMAT_OFFER_LENGTH,
  FORMAT_SELECTION_LENGTH,
  FormatFeature,
  FormatFlag,
  formatFeatureBits,
  formatFeatureNames,
  formatOffersLength,
  MAX_FORMAT_OFFERS,
  type WireFormatOffer,
} from '../../src/wire/index.js';
import { hex, refusal, toHex, viewOf } from '../support/hex.js';

/** Of one to four bytes, and those that a careless decoder drops. */
const CHARACTER = fc.constantFrom('a', '.', '[', 'ä', '€', '😀', '\ufeff', '\uffff');
const UUID = '00112233 44556677 8899aabb ccddeeff';

const OFFER: WireFormatOffer = {
  uuid: hex(UUID),
  major: 0x0102,
  minor: 0x0304,
  flags: FormatFlag.SAVE | FormatFlag.PARTIAL,
  features: FormatFeature.deflate | FormatFeature.zstd,
  limit: 0x1f_ffff_ffff_ffff,
  estimate: undefined,
  name: 'org.ä',
};
const PLAIN = {
  ...OFFER,
  major: 1,
  minor: 0,
  flags: 3,
  features: 0,
  limit: 0,
  estimate: 0x1_0000_0002,
  name: '',
};

/** A GET reply with the two. */
const OFFERS = `
  02000000 70000000
  ${UUID} 0201 0403 05000000 03000000 00000000
  ffffffff ffff1f00 ffffffff ffffffff 6f72672e c3a4 ${'00'.repeat(58)}
  ${UUID} 0100 0000 03000000 00000000 00000000
  00000000 00000000 02000000 01000000 ${'00'.repeat(64)}`;
const SELECTION = `${UUID} 0201 0403 05000000 03000000 00000000`;

function encoded(offers: readonly WireFormatOffer[]): Uint8Array {
  const bytes = new Uint8Array(formatOffersLength(offers.length)).fill(0xee);
  encodeFormatOffers(viewOf(bytes), 0, offers);
  return bytes;
}
const decoded = (bytes: Uint8Array): WireFormatOffer[] => decodeFormatOffers(viewOf(bytes), 0, bytes.length);

t.test('offers, byte by byte', async (t) => {
  t.equal(toHex(encoded([OFFER, PLAIN])), toHex(hex(OFFERS)));
  t.strictSame(decoded(hex(OFFERS)), [OFFER, PLAIN]);
  t.equal(toHex(encoded([])), '0000000070000000');
  t.strictSame(decoded(hex('00000000 70000000')), []);
  t.equal(formatOffersLength(3), 8 + 3 * 112);
  t.same(FormatFlag, { SAVE: 1, LOAD: 2, PARTIAL: 4 });
  // Entries of a later version are longer, and may not be the last thing there is.
  const more = (text: string): string => `${text} 11223344 55667788`;
  const [head, first, second] = [OFFERS.slice(0, 23), hex(OFFERS).slice(8, 120), hex(OFFERS).slice(120)];
  t.match(head, /70000000/);
  const longer = hex(`02000000 78000000 ${more(toHex(first))} ${more(toHex(second))} ffff`);
  t.strictSame(decoded(longer), [OFFER, PLAIN], 'longer entries');
  const surrounded = new Uint8Array([9, 9, 9, ...hex(OFFERS), 9]);
  t.strictSame(
    decodeFormatOffers(viewOf(surrounded), 3, surrounded.length - 1),
    [OFFER, PLAIN],
    'at an offset',
  );
});

t.test('a selection, byte by byte', async (t) => {
  const { limit: _, estimate: __, name: ___, ...selection } = OFFER;
  const bytes = new Uint8Array(FORMAT_SELECTION_LENGTH + 4).fill(0xee);
  encodeFormatSelection(viewOf(bytes), 2, selection);
  t.equal(toHex(bytes), `eeee${toHex(hex(SELECTION))}eeee`);
  t.strictSame(decodeFormatSelection(viewOf(bytes), 2, 34), selection);
  const given = hex(SELECTION);
  const taken = decodeFormatSelection(viewOf(given), 0, 32);
  given.fill(0);
  t.equal(toHex(taken.uuid), toHex(hex(UUID)), 'it does not share the bytes of the message');
  for (let length = 0; length < 32; length++)
    t.equal(
      refusal(() => decodeFormatSelection(viewOf(given), 0, length)),
      Errno.EINVAL,
      `${length} bytes`,
    );
  t.equal(
    refusal(() => decodeFormatSelection(viewOf(given), 8, 40)),
    Errno.EINVAL,
    'beyond the buffer',
  );
});

t.test('names', async (t) => {
  const name = (text: string): string | undefined => decoded(encoded([{ ...PLAIN, name: text }]))[0]?.name;
  for (const text of ['', 'a', 'x'.repeat(64), `${'x'.repeat(62)}ä`, '\ufeffmark'])
    t.equal(name(text), text, `${text.length} characters`);
  for (const text of ['x'.repeat(65), `${'x'.repeat(63)}ä`, 'ä'.repeat(33)])
    t.equal(
      refusal(() => encoded([{ ...PLAIN, name: text }])),
      Errno.E2BIG,
      'more than 64 bytes',
    );
  const bytes = encoded([PLAIN]);
  bytes.set([0xff, 0x61, 0, 0x62], 8 + 48);
  t.equal(
    decoded(bytes)[0]?.name,
    '\ufffda',
    'what is no UTF-8 is replaced, what is behind the zero is not read',
  );
});

t.test('what is no list of offers', async (t) => {
  const sound = hex(OFFERS);
  const changed = (at: number, ...values: number[]): Uint8Array => {
    const bytes = sound.slice();
    bytes.set(values, at);
    return bytes;
  };
  for (let length = 0; length < sound.length; length++)
    t.equal(
      refusal(() => decoded(sound.slice(0, length))),
      Errno.EINVAL,
      `cut at ${length}`,
    );
  const wrong: [string, Uint8Array, number][] = [
    ['entries too short', changed(4, 0x6f), Errno.EPROTO],
    ['entries of no length', changed(4, 0), Errno.EPROTO],
    ['entries longer than a page', changed(4, 0x01, 0x10), Errno.EPROTO],
    ['more entries than bytes', changed(0, 3), Errno.EINVAL],
    ['more than may be', changed(0, MAX_FORMAT_OFFERS + 1), Errno.EPROTO],
    ['four thousand million', changed(0, 0xff, 0xff, 0xff, 0xff), Errno.EPROTO],
    ['a limit of 2^53', changed(8 + 32, 0, 0, 0, 0, 0, 0, 0x20, 0), Errno.EINVAL],
    ['an estimate of 2^53', changed(8 + 40, 0, 0, 0, 0, 0, 0, 0x20, 0), Errno.EINVAL],
    ['an estimate that is almost unknown', changed(8 + 40, 0xfe), Errno.EINVAL],
  ];
  for (const [what, bytes, errno] of wrong)
    t.equal(
      refusal(() => decoded(bytes)),
      errno,
      what,
    );
  const most = Array.from({ length: MAX_FORMAT_OFFERS }, (_, minor) => ({ ...PLAIN, minor }));
  t.strictSame(decoded(encoded(most)), most, 'as many as may be');
});

t.test('features have bits', async (t) => {
  t.equal(formatFeatureBits([]), 0);
  t.equal(formatFeatureBits(['deflate']), 1);
  t.equal(formatFeatureBits(['zstd', 'deflate', 'zstd']), 3, 'each once');
  t.equal(formatFeatureBits(['brotli', 'toString']), 0, 'no bit, no feature');
  t.strictSame(formatFeatureNames(0), []);
  t.strictSame(formatFeatureNames(2), ['zstd']);
  t.strictSame(formatFeatureNames(2 ** 52 + 2 ** 31 + 3), ['deflate', 'zstd'], 'bits of later versions');
  t.strictSame(formatFeatureNames(2 ** 52 + 2 ** 32), [], 'only those');
});

t.test('any offers come back, any bytes are offers or are refused', async (t) => {
  const u64 = fc.maxSafeNat();
  const offer: fc.Arbitrary<WireFormatOffer> = fc.record(
    {
      uuid: fc.uint8Array({ minLength: 16, maxLength: 16 }),
      major: fc.nat(0xffff),
      minor: fc.nat(0xffff),
      flags: fc.nat(0xffffffff),
      features: u64,
      limit: u64,
      estimate: fc.option(u64, { nil: undefined }),
      name: fc.string({ unit: CHARACTER, maxLength: 16 }),
    },
    { noNullPrototype: true },
  );
  fc.assert(
    fc.property(fc.array(offer, { maxLength: 5 }), (offers) => {
      if (!isDeepStrictEqual(decoded(encoded(offers)), offers)) throw new Error('other offers');
    }),
    { numRuns: 200, seed: 1 },
  );
  // Heads that promise, and entries that may or may not be there.
  const head = fc.tuple(
    fc.oneof(fc.nat(6), fc.nat(0xffffffff)),
    fc.oneof(fc.integer({ min: 110, max: 130 }), fc.nat(0xffffffff)),
  );
  let taken = 0;
  fc.assert(
    fc.property(
      head,
      fc.uint8Array({ maxLength: 700, size: 'max' }),
      fc.nat(40),
      ([count, length], rest, at) => {
        const bytes = new Uint8Array(8 + rest.length);
        viewOf(bytes).setUint32(0, count, true);
        viewOf(bytes).setUint32(4, length, true);
        bytes.set(
          rest.map((byte) => (at < 20 ? byte & 0x0f : byte)),
          8,
        );
        // Small numbers make limits that are none.
        let offers: WireFormatOffer[] = [];
        if (at < 10)
          for (let end = 8; end + 48 <= bytes.length; end += FORMAT_OFFER_LENGTH)
            bytes.fill(0, end + 24, end + 48);
        if (
          refusal(() => {
            offers = decoded(bytes);
          }) === 0
        ) {
          taken += offers.length > 0 ? 1 : 0;
          if (offers.length !== count) throw new Error('not as many as claimed');
        }
        refusal(() => decodeFormatOffers(viewOf(bytes), at, at + length));
        refusal(() => decodeFormatSelection(viewOf(bytes), at, at + length));
      },
    ),
    { numRuns: 2000, seed: 2 },
  );
  t.ok(taken > 20, `${taken} were offers`);
});
