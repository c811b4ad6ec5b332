// SPDX-License-Identifier: Apache-2.0
/** DMA ranges as they go over in a document: byte table, round trip, and what is no such table. */
import fc from 'fast-check';
import t from 'tap';
import { packedRanges, packRanges, type RangeEntry, unpackRanges } from '../../src/handoff/index.js';

t.test('bytes', async (t) => {
  const { packed } = packRanges([{ address: 0x1000, size: 4096, offset: 2 ** 45, flags: 3, file: null }]);
  t.equal(
    Buffer.from(packed, 'base64').toString('hex'),
    ['000000000000b040', '000000000000b040', '000000000000c042', '0000000000000840', '000000000000f0bf'].join(
      '',
    ),
  );
});

t.test('what goes in comes out', async () => {
  const number = fc.maxSafeNat();
  const range = fc.record<RangeEntry>({
    address: number,
    size: number,
    offset: number,
    flags: fc.nat(),
    file: fc.option(fc.nat()),
  });
  fc.assert(
    fc.property(fc.array(range), (ranges) => {
      const read = unpackRanges(packedRanges.parse(JSON.parse(JSON.stringify(packRanges(ranges)))));
      return JSON.stringify(read) === JSON.stringify(ranges);
    }),
  );
});

t.test('hostile tables', async (t) => {
  const error = { code: 'DEVSTATE_E_HANDOFF_BUNDLE' };
  const table = (...numbers: number[]) => ({
    packed: Buffer.from(Float64Array.from(numbers).buffer).toString('base64'),
  });
  t.throws(() => unpackRanges(table(1, 2, 3, 4)), { ...error, message: /32 bytes of DMA ranges/ });
  t.throws(() => unpackRanges({ packed: Buffer.alloc(40 * 65_536).toString('base64') }), error, 'too many');
  for (const wrong of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, -0.5])
    for (let field = 0; field < 4; field++) {
      const numbers = [0, 0, 0, 0, 0];
      numbers[field] = wrong;
      t.throws(() => unpackRanges(table(...numbers)), error, `${wrong} in field ${field}`);
    }
  t.throws(() => unpackRanges(table(0, 0, 0, 0, -2)), error);
  fc.assert(
    fc.property(fc.string(), (packed) => {
      try {
        unpackRanges({ packed });
        return true;
      } catch (caught) {
        return (caught as { code?: string }).code === error.code;
      }
    }),
  );
});
