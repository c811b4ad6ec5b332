// SPDX-License-Identifier: Apache-2.0
/** The dirty log against a set of byte addresses, and its limits. */

import fc from 'fast-check';
import t from 'tap';
import { DirtyLog, dirtyRanges, MIN_LOG_PAGE_SIZE } from '../../src/migration/index.js';
import { type DmaRange, dirtyBitmapLength, Errno } from '../../src/wire/index.js';
import { refusal } from '../support/hex.js';

function report(log: DirtyLog, iova: number, length: number, pageSize = 4096): Uint8Array {
  const bitmap = new Uint8Array(dirtyBitmapLength(length, pageSize)).fill(0xff);
  log.report(iova, length, pageSize, bitmap);
  return bitmap;
}

/** Indexes of the set bits. */
function bits(bitmap: Uint8Array): number[] {
  const set: number[] = [];
  for (let bit = 0; bit < bitmap.length * 8; bit++)
    if ((bitmap[bit >>> 3]! & (1 << (bit & 7))) !== 0) set.push(bit);
  return set;
}

/** Remembers each dirty page of the log's size, in the plainest way. */
class Model {
  readonly pages = new Set<number>();
  constructor(
    readonly pageSize: number,
    readonly ranges: readonly DmaRange[],
  ) {}

  mark(address: number, length: number): void {
    const first = Math.floor(address / this.pageSize);
    for (let page = first; page * this.pageSize < address + length; page++) {
      const from = Math.max(page * this.pageSize, address);
      const to = Math.min((page + 1) * this.pageSize, address + length);
      const logged = this.ranges.some(({ iova, length: size }) => from < iova + size && to > iova);
      if (this.ranges.length === 0 || logged) this.pages.add(page);
    }
  }

  report(iova: number, length: number, pageSize: number): number[] {
    const set = new Set<number>();
    for (const page of [...this.pages]) {
      const start = page * this.pageSize;
      const end = start + this.pageSize;
      for (let bit = 0; bit * pageSize < length; bit++) {
        const from = iova + bit * pageSize;
        const to = Math.min(from + pageSize, iova + length);
        if (from < end && to > start) set.add(bit);
      }
      if (start >= iova && end <= iova + length) this.pages.delete(page);
    }
    return [...set].sort((a, b) => a - b);
  }
}

const K = 1024;
const pageSizes = fc.constantFrom(4 * K, 8 * K, 64 * K);
const address = fc.oneof(
  fc.nat(512 * K),
  fc.nat(512).map((n) => n * K),
);
/** Page-aligned, not overlapping, in any order. */
const ranges = (pageSize: number): fc.Arbitrary<DmaRange[]> =>
  fc
    .uniqueArray(fc.nat(Math.floor((512 * K) / pageSize)), { maxLength: 8 })
    .map((cuts) => {
      const sorted = cuts.sort((a, b) => a - b);
      return sorted.flatMap((start, i) => {
        const end = sorted[i + 1];
        return i % 2 === 0 && end !== undefined
          ? [{ iova: start * pageSize, length: (end - start) * pageSize }]
          : [];
      });
    })
    .map((list) => list.reverse());

t.test('like a set of pages: any marks, ranges, page sizes and reports', async () => {
  const step = fc.oneof(
    { weight: 3, arbitrary: fc.record({ kind: fc.constant('mark'), at: address, length: fc.nat(40 * K) }) },
    {
      weight: 1,
      arbitrary: fc.record({
        kind: fc.constant('report'),
        at: address,
        length: fc.integer({ min: 1, max: 600 * K }),
        pageSize: fc.constantFrom(1 * K, 4 * K, 8 * K, 64 * K, 1024 * K),
      }),
    },
  );
  const scenario = pageSizes.chain((pageSize) =>
    fc.record({
      pageSize: fc.constant(pageSize),
      ranges: ranges(pageSize),
      steps: fc.array(step, { maxLength: 25 }),
    }),
  );
  fc.assert(
    fc.property(scenario, ({ pageSize, ranges, steps }) => {
      const log = new DirtyLog(pageSize, ranges);
      const model = new Model(pageSize, ranges);
      for (const step of steps) {
        if ('pageSize' in step) {
          const found = bits(report(log, step.at, step.length, step.pageSize));
          const expected = model.report(step.at, step.length, step.pageSize);
          if (found.join() !== expected.join()) throw new Error(`[${found}] instead of [${expected}]`);
        } else {
          log.mark(step.at, step.length);
          model.mark(step.at, step.length);
        }
      }
    }),
    { numRuns: 500, seed: 3 },
  );
});

t.test('a page that is reported in part is reported again with the rest', async (t) => {
  const log = new DirtyLog(64 * K, []);
  log.mark(0, 1);
  t.strictSame(bits(report(log, 0, 4096)), [0]);
  t.strictSame(bits(report(log, 4096, 60 * K)), [...Array(15).keys()], 'the rest of the page');
  t.strictSame(bits(report(log, 0, 64 * K)), [...Array(16).keys()], 'all of it: told and forgotten');
  t.strictSame(bits(report(log, 0, 64 * K)), []);
});

t.test('a terabyte of guest memory, a thousand dirty pages', async (t) => {
  const log = new DirtyLog(4096, [{ iova: 0, length: 2 ** 40 }]);
  const expected: number[] = [];
  for (let i = 0; i < 1000; i++) {
    const page = (i * 268435399) % 2 ** 28;
    expected.push(page);
    log.mark(page * 4096 + 100, 8);
  }
  const before = process.memoryUsage().arrayBuffers;
  const found: number[] = [];
  // A manager asks for what fits one transfer, 32 GiB at a time.
  const bitmap = new Uint8Array(2 ** 20);
  for (let iova = 0; iova < 2 ** 40; iova += 2 ** 35) {
    log.report(iova, 2 ** 35, 4096, bitmap);
    for (const range of dirtyRanges(bitmap, iova, 2 ** 35, 4096)) {
      for (let page = range.iova; page < range.iova + range.length; page += 4096) found.push(page / 4096);
    }
  }
  t.strictSame(
    found,
    expected.sort((a, b) => a - b),
  );
  t.ok(process.memoryUsage().arrayBuffers - before < 8 * 2 ** 20, 'no memory in proportion to the range');
});

t.test('page sizes', async (t) => {
  t.equal(new DirtyLog(1, []).pageSize, MIN_LOG_PAGE_SIZE, 'a finer hint gets the finest');
  t.equal(new DirtyLog(65536, []).pageSize, 65536);
  t.equal(new DirtyLog(2 ** 52, []).pageSize, 2 ** 30, 'a coarser one the coarsest');
  for (const size of [0, 3, 4097, 6144, 2 ** 49 + 1, -4096]) {
    t.equal(
      refusal(() => new DirtyLog(size, [])),
      Errno.EINVAL,
      `${size}`,
    );
  }
});

t.test('ranges that are refused', async (t) => {
  const wrong: [string, number, DmaRange[]][] = [
    ['empty', Errno.EINVAL, [{ iova: 0, length: 0 }]],
    ['unaligned start', Errno.EINVAL, [{ iova: 512, length: 4096 }]],
    ['unaligned end', Errno.EINVAL, [{ iova: 0, length: 4097 }]],
    ['overflow', Errno.EOVERFLOW, [{ iova: 2 ** 53 - 4096, length: 8192 }]],
    [
      'overlap',
      Errno.EINVAL,
      [
        { iova: 8192, length: 8192 },
        { iova: 0, length: 12288 },
      ],
    ],
    [
      'twice the same',
      Errno.EINVAL,
      [
        { iova: 0, length: 4096 },
        { iova: 0, length: 4096 },
      ],
    ],
  ];
  for (const [what, errno, list] of wrong)
    t.equal(
      refusal(() => new DirtyLog(4096, list)),
      errno,
      what,
    );
  t.equal(
    refusal(() => new DirtyLog(65536, [{ iova: 4096, length: 65536 }])),
    Errno.EINVAL,
    'of the larger page',
  );
  t.equal(
    refusal(
      () =>
        new DirtyLog(4096, [
          { iova: 4096, length: 4096 },
          { iova: 0, length: 4096 },
        ]),
    ),
    0,
    'neighbours',
  );
});

t.test('reports that are refused', async (t) => {
  const log = new DirtyLog(4096, []);
  const none = new Uint8Array(0);
  t.equal(
    refusal(() => log.report(0, 0, 4096, none)),
    Errno.EINVAL,
    'of nothing',
  );
  t.equal(
    refusal(() => log.report(0, 4096, 0, none)),
    Errno.EINVAL,
    'page size 0',
  );
  t.equal(
    refusal(() => log.report(0, 4096, 2 ** 49 + 1, none)),
    Errno.EINVAL,
    'page size that is nearly a power of two',
  );
  t.equal(
    refusal(() => log.report(2 ** 52, 2 ** 52, 4096, none)),
    Errno.EOVERFLOW,
    'beyond 2^53',
  );
  t.equal(
    refusal(() => log.report(0, 2 ** 45, 4096, none)),
    Errno.E2BIG,
    'a bitmap of a gigabyte',
  );
});

t.test('writes of no length are none', async (t) => {
  const log = new DirtyLog(4096, []);
  log.mark(4096, 0);
  t.strictSame(bits(report(log, 0, 65536)), []);
});

t.test('ranges of a bitmap', async (t) => {
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 8, maxLength: 40 }),
      fc.nat(63),
      fc.nat(4095),
      (bitmap, pages, rest) => {
        const length = Math.max(1, Math.min(pages, bitmap.length * 8 - 1) * 4096 + rest);
        const found = new Set<number>();
        let last = -1;
        for (const { iova, length: size } of dirtyRanges(bitmap, 4096, length, 4096)) {
          if (iova <= last || size <= 0 || iova + size > 4096 + length)
            throw new Error('out of order or outside');
          last = iova + size;
          for (let at = iova; at < iova + size; at += 4096) found.add(at / 4096 - 1);
        }
        const expected = bits(bitmap).filter((bit) => bit * 4096 < length);
        if ([...found].join() !== expected.join())
          throw new Error(`[${[...found]}] instead of [${expected}]`);
      },
    ),
    { numRuns: 500, seed: 4 },
  );
  const bitmap = Uint8Array.of(0b1000_0110, 0b0000_0001, 0, 0, 0, 0, 0, 0x80);
  t.strictSame(
    [...dirtyRanges(bitmap, 0x10000, 63 * 4096 + 100, 4096)],
    [
      { iova: 0x11000, length: 0x2000 },
      { iova: 0x17000, length: 0x2000 },
      { iova: 0x10000 + 63 * 4096, length: 100 },
    ],
    'neighbours merged across bytes, the last clipped',
  );
});
