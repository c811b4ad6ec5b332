// SPDX-License-Identifier: Apache-2.0
/** DMA ranges as they go over in a document: byte table, round trip, and what is no such table. */
import fc from 'fast-check';
import t from 'tap';
import {
  pack,
  packedRanges,
  packRanges,
  type RangeEntry,
  unpack,
  unpackRanges,
} from '../../src/handoff/range-table.js';

t.test('bytes', async (t) => {
  const { packed } = pack([{ address: 0x1000, size: 4096, offset: 2 ** 45, flags: 3, file: null }]);
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
      const read = unpack(packedRanges.parse(JSON.parse(JSON.stringify(pack(ranges)))));
      return JSON.stringify(read) === JSON.stringify(ranges);
    }),
  );
});

t.test('few are objects of the application, many are packed', async (t) => {
  const plainOf = ({ address }: RangeEntry) => ({ at: address });
  const ranges = (count: number): RangeEntry[] =>
    Array.from({ length: count }, (_, address) => ({ address, size: 1, offset: 0, flags: 0, file: null }));
  const few = packRanges(ranges(1024), plainOf);
  t.same(few, ranges(1024).map(plainOf));
  t.equal(unpackRanges(few, plainOf), few);
  const many = packRanges(ranges(1025), plainOf);
  t.match(many, { packed: String });
  t.same(unpackRanges(many, plainOf), ranges(1025).map(plainOf));
});

t.test('hostile tables', async (t) => {
  const error = { code: 'DEVSTATE_E_HANDOFF_BUNDLE' };
  const table = (...numbers: number[]) => ({
    packed: Buffer.from(Float64Array.from(numbers).buffer).toString('base64'),
  });
  t.throws(() => unpack(table(1, 2, 3, 4)), { ...error, message: /32 bytes of DMA ranges/ });
  t.throws(() => unpack({ packed: Buffer.alloc(40 * 65_536).toString('base64') }), error, 'too many');
  for (const wrong of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, -0.5])
    for (let field = 0; field < 4; field++) {
      const numbers = [0, 0, 0, 0, 0];
      numbers[field] = wrong;
      t.throws(() => unpack(table(...numbers)), error, `${wrong} in field ${field}`);
    }
  t.throws(() => unpack(table(0, 0, 0, 0, -2)), error);
  fc.assert(
    fc.property(fc.string(), (packed) => {
      try {
        unpack({ packed });
        return true;
      } catch (caught) {
        return (caught as { code?: string }).code === error.code;
      }
    }),
  );
});
