// SPDX-License-Identifier: Apache-2.0
/** What the source's QEMU is asked goes wrong, each time something else. */
import t from 'tap';
import { withoutLeak } from '../../support/closes.js';
import { type GoodRun, goodRun, qmpPoints, qtestPoints, sweep } from './sweep.js';

const options = { taps: false };
const POINTS = {
  QMP: (good: GoodRun) => qmpPoints(good, 'source'),
  qtest: (good: GoodRun) => qtestPoints(good, 'source'),
};

for (const [what, pointsOf] of Object.entries(POINTS)) {
  t.test(what, async (t) => {
    await withoutLeak(t, async () => {
      const points = pointsOf(await goodRun(options));
      t.ok(points.length > 5, `${points.length} runs`);
      t.same(await sweep(points, options), []);
    });
  });
}
