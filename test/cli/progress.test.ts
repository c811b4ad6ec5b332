// SPDX-License-Identifier: Apache-2.0
/** The progress bar: what it says, and that no terminal has to wrap it. */

import { stripVTControlCharacters } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import { barText } from '../../src/cli/progress.js';

const precopy = {
  phase: 'precopy',
  ramTotal: 2 ** 30,
  ramRemaining: 2 ** 28,
  bitsPerSecond: 8 * 2 ** 20,
  deviceBytes: 2048,
} as const;

t.test('what it says', async (t) => {
  t.equal(
    stripVTControlCharacters(barText(precopy, 80)),
    'precopy    [##################......]  75 %  1.0 MiB/s  device 2.0 KiB',
  );
  t.equal(
    stripVTControlCharacters(barText({ ...precopy, deviceBytes: 0, ramRemaining: 0 }, 80)),
    'precopy    [########################] 100 %  1.0 MiB/s',
  );
  t.equal(barText({ phase: 'land' }, 80).trimEnd(), 'land');
});

t.test('it fits', async () => {
  const amount = fc.nat({ max: 2 ** 40 });
  const progress = fc.record({
    phase: fc.constantFrom('precopy' as const, 'switchover' as const),
    ramTotal: amount,
    ramRemaining: amount,
    bitsPerSecond: amount,
    deviceBytes: amount,
  });
  fc.assert(
    fc.property(progress, fc.integer({ min: 1, max: 120 }), (report, width) => {
      return stripVTControlCharacters(barText(report, width)).length < width;
    }),
    { seed: 1 },
  );
});
