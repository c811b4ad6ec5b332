// SPDX-License-Identifier: Apache-2.0
/** The dirty log where a guest or a manager makes it large: as right as the plain way, and without a cost for each page. */

import fc from 'fast-check';
import t from 'tap';
import { DirtyLog } from '../../src/migration/index.js';
import { turnsOf } from '../support/turns.js';

const PAGE = 4096;

t.test('a report is that of a log that is kept page by page', async () => {
  const pages = fc.integer({ min: 0, max: 300 });
  const range = fc.tuple(pages, fc.integer({ min: 1, max: 40 }));
  fc.assert(
    fc.property(
      fc.array(range, { maxLength: 20 }),
      fc.array(fc.tuple(pages, fc.integer({ min: 1, max: 200 }), fc.constantFrom(-1, 0, 100)), {
        maxLength: 6,
      }),
      fc.constantFrom(PAGE, 2 * PAGE, 32 * PAGE, 64 * PAGE, PAGE / 2, PAGE / 16),
      (marks, reports, size) => {
        const log = new DirtyLog(PAGE, []);
        const dirty = new Set<number>();
        for (const [first, count] of marks) {
          log.mark(first * PAGE + 5, count * PAGE - 10);
          for (let i = 0; i < count; i++) dirty.add(first + i);
        }
        for (const [first, count, more] of reports) {
          const [iova, length] = [first * PAGE, count * PAGE + more];
          const bitmap = new Uint8Array(8 * Math.ceil(length / size / 64));
          void log.report(iova, length, size, bitmap);
          const expected = new Uint8Array(bitmap.length);
          for (const page of dirty) {
            const [from, to] = [Math.max(page * PAGE, iova), Math.min((page + 1) * PAGE, iova + length)];
            if (from >= to) continue;
            for (let bit = Math.floor((from - iova) / size); bit * size < to - iova; bit++)
              expected[bit >>> 3]! |= 1 << (bit & 7);
            if (page * PAGE >= iova && (page + 1) * PAGE <= iova + length) dirty.delete(page);
          }
          if (Buffer.compare(bitmap, expected) !== 0) return false;
        }
        return true;
      },
    ),
    { numRuns: 500 },
  );
});

t.test('only what lies in the ranges is logged, also of one write over many of them', async (t) => {
  const ranges = Array.from({ length: 4096 }, (_, i) => ({ iova: i * 4 * PAGE, length: 2 * PAGE }));
  const log = new DirtyLog(PAGE, ranges);
  log.mark(3 * PAGE, 6 * PAGE);
  log.mark(1000 * 4 * PAGE + 2 * PAGE, 2 * PAGE);
  log.mark(4095 * 4 * PAGE + PAGE, 100 * PAGE);
  const bitmap = new Uint8Array(2048);
  log.report(0, 16384 * PAGE, PAGE, bitmap);
  const set: number[] = [];
  for (let page = 0; page < 16384; page++)
    if ((bitmap[page >>> 3]! & (1 << (page & 7))) !== 0) set.push(page);
  t.same(set, [4, 5, 8, 16381]);
});

/** Processor time of `work`, ms: the least of some runs. */
function cost(work: () => void): number {
  const runs = Array.from({ length: 5 }, () => {
    const before = process.cpuUsage();
    work();
    const { user, system } = process.cpuUsage(before);
    return (user + system) / 1000;
  });
  return Math.min(...runs);
}

t.test(
  'the largest report, all of it dirty, and the log with most ranges keep the event loop for a moment',
  async (t) => {
    const bitmap = new Uint8Array(2 ** 20);
    const report = cost(() => {
      const log = new DirtyLog(PAGE, []);
      log.mark(0, 32 * 2 ** 30);
      log.report(0, 32 * 2 ** 30, PAGE, bitmap);
    });
    t.ok(bitmap.every((byte) => byte === 0xff));
    t.ok(report < 100, `${report} ms`);
    const many = new DirtyLog(
      PAGE,
      Array.from({ length: 4096 }, (_, i) => ({ iova: i * 2 ** 21, length: PAGE })),
    );
    const marks = cost(() => {
      for (let i = 0; i < 1024; i++) many.mark(i * 8192 + 2 ** 40, PAGE);
    });
    t.ok(marks < 100, `${marks} ms`);
  },
);

for (const size of [PAGE / 2, 2 * PAGE, 64 * PAGE]) {
  t.test(`the largest report at a page size of ${size} gives others their turns`, async (t) => {
    const bitmap = new Uint8Array(2 ** 20);
    const length = Math.min(8 * bitmap.length * size, 2 ** 36);
    const used = bitmap.subarray(0, length / size / 8);
    // The code is compiled first, by a report of less.
    for (const part of [2 ** 30, length]) {
      const log = new DirtyLog(PAGE, []);
      log.mark(0, part);
      const turns = await turnsOf(() => log.report(0, part, size, bitmap));
      if (part < length) continue;
      t.ok(used.every((byte) => byte === 0xff));
      t.ok(turns >= 8, `${turns} turns`);
      await log.report(0, length, size, bitmap);
      t.ok(used.every((byte) => byte === 0));
    }
  });
}

t.test('a long report from within a page is refused, a short one is not', async (t) => {
  const log = new DirtyLog(PAGE, []);
  log.mark(0, 2 ** 34);
  t.throws(() => log.report(1, 2 ** 34, 2 * PAGE, new Uint8Array(2 ** 20)), {
    message: /ask for less/,
  });
  const bitmap = new Uint8Array(8);
  await log.report(1, 2 * PAGE, 2 * PAGE, bitmap);
  t.equal(bitmap[0], 1);
});
