// SPDX-License-Identifier: Apache-2.0
/** DMA ranges as they are handed over: byte table, round trip, and what is no such table. */
import fc from 'fast-check';
import t from 'tap';
import { packDocument, unpackDocument } from '../../src/documents/index.js';
import { sealedContent, sealedMemory } from '../../src/handoff/index.js';
import {
  packRanges,
  RANGES_NAME,
  type RangeEntry,
  type RangeTable,
  rangeTable,
  unpackRanges,
} from '../../src/handoff/range-table.js';
import type { Fd } from '../../src/transport/index.js';
import { z } from '../../src/zod.js';
import { openFds } from '../support/closes.js';

const LEAST = 65;
const MOST = 65_535;
const schema = rangeTable(z.object({ at: z.number() }));

const plainOf = ({ address }: RangeEntry) => ({ at: address });
const same = (range: RangeEntry): RangeEntry => range;

/** What goes into a bundle, and comes out of it. */
class Files {
  readonly #files = new Map<string, Fd>();

  readonly add = (_kind: number, name: string, fd: Fd): void => {
    this.#files.set(name, fd);
  };

  readonly take = (_kind: number, name: string): Fd => this.#files.get(name)!;
}

function range(address: number): RangeEntry {
  return { address, size: 1, offset: 0, flags: 0, file: null };
}

function rangesOf(count: number): RangeEntry[] {
  return Array.from({ length: count }, (_, address) => range(address));
}

/** As a file holds them. */
async function stored(bytes: Uint8Array, count: number): Promise<readonly RangeEntry[]> {
  const fd = await sealedMemory('test', [bytes]);
  return unpackRanges<RangeEntry>({ stored: count }, same, () => fd);
}

t.test('bytes', async (t) => {
  const files = new Files();
  const first = { address: 0x1000, size: 4096, offset: 2 ** 45, flags: 3, file: null };
  const packing = { entryOf: same, plainOf: same, add: files.add };
  const table = await packRanges([first, ...rangesOf(LEAST)], packing);
  t.same(table, { stored: LEAST + 1 });
  const fd = files.take(0, RANGES_NAME);
  const content = Buffer.from(await sealedContent(fd, 2 ** 20));
  fd.close();
  t.equal(content.length, 40 * (LEAST + 1));
  t.equal(
    content.toString('hex', 0, 40),
    ['000000000000b040', '000000000000b040', '000000000000c042', '0000000000000840', '000000000000f0bf'].join(
      '',
    ),
  );
});

t.test('what goes in comes out', async () => {
  const number = fc.maxSafeNat();
  const one = fc.record<RangeEntry>({
    address: number,
    size: number,
    offset: number,
    flags: fc.nat(),
    file: fc.option(fc.nat()),
  });
  const many = fc.array(one, { minLength: 1 });
  await fc.assert(
    fc.asyncProperty(many, async (few) => {
      const ranges = Array.from({ length: LEAST }, (_, i) => few[i % few.length]!);
      const files = new Files();
      const table = await packRanges(ranges, { entryOf: same, plainOf: same, add: files.add });
      const read = await unpackRanges<RangeEntry>(table, same, files.take);
      return JSON.stringify(read) === JSON.stringify(ranges);
    }),
    { numRuns: 30 },
  );
});

t.test('few are objects of the application, many are in a file', async (t) => {
  const before = openFds();
  const files = new Files();
  const packing = { entryOf: same, plainOf, add: files.add };
  const few = await packRanges(rangesOf(LEAST - 1), packing);
  t.same(few, rangesOf(LEAST - 1).map(plainOf));
  t.equal(await unpackRanges(few, plainOf, files.take), few);
  for (const count of [LEAST, MOST]) {
    const many = await packRanges(rangesOf(count), packing);
    const document: RangeTable<{ at: number }> = schema.parse(unpackDocument(packDocument(many)));
    t.same(document, { stored: count });
    t.same(await unpackRanges(document, plainOf, files.take), rangesOf(count).map(plainOf));
  }
  t.equal(openFds(), before);
});

t.test('hostile tables', async (t) => {
  const before = openFds();
  const error = { code: 'DEVSTATE_E_HANDOFF_BUNDLE' };
  const table = (...numbers: number[]) => stored(new Uint8Array(Float64Array.from(numbers).buffer), 1);
  await t.rejects(table(1, 2, 3, 4), { ...error, message: /32 bytes of DMA ranges/ });
  await t.rejects(table(...Array(10).fill(0)), { ...error, message: /80 bytes/ });
  await t.rejects(stored(Buffer.alloc(40 * (MOST + 1)), MOST + 1), error, 'too many');
  for (const count of [-1, 0.5, MOST + 1]) t.throws(() => schema.parse({ stored: count }));
  for (const wrong of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, -0.5])
    for (let field = 0; field < 4; field++) {
      const numbers = [0, 0, 0, 0, 0];
      numbers[field] = wrong;
      await t.rejects(table(...numbers), error, `${wrong} in field ${field}`);
    }
  await t.rejects(table(0, 0, 0, 0, -2), error);
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), fc.nat(5), async (bytes, count) => {
      try {
        await stored(bytes, count);
        return true;
      } catch (caught) {
        return (caught as { code?: string }).code === error.code;
      }
    }),
  );
  t.equal(openFds(), before, 'nothing stays open');
});
