// SPDX-License-Identifier: Apache-2.0
/** What QEMU is asked in an upgrade by cpr-exec goes wrong, each time something else: before it has executed the new program, and after. */
import t from 'tap';
import { withoutLeak } from '../../support/closes.js';
import { type GoodRun, qmpPoints, qtestPoints } from './sweep.js';
import { goodUpgrade, sweepUpgrade } from './upgrade-sweep.js';

const POINTS = {
  'the old program, QMP': (good: GoodRun) => qmpPoints(good, 'source'),
  'the old program, qtest': (good: GoodRun) => qtestPoints(good, 'source'),
  'the new program, QMP': (good: GoodRun) => qmpPoints(good, 'destination'),
  'the new program, qtest': (good: GoodRun) => qtestPoints(good, 'destination'),
};

for (const [what, pointsOf] of Object.entries(POINTS)) {
  t.test(what, async (t) => {
    await withoutLeak(t, async () => {
      const points = pointsOf(await goodUpgrade('cpr-exec'));
      t.ok(points.length > 5, `${points.length} runs`);
      t.same(await sweepUpgrade('cpr-exec', points), []);
    });
  });
}
