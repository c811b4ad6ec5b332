// SPDX-License-Identifier: Apache-2.0
/** What the new QEMU is asked in an upgrade by cpr-transfer goes wrong, each time something else. */
import t from 'tap';
import { withoutLeak } from '../../support/closes.js';
import { type GoodRun, qmpPoints, qtestPoints } from './sweep.js';
import { goodUpgrade, sweepUpgrade } from './upgrade-sweep.js';

const POINTS = {
  QMP: (good: GoodRun) => qmpPoints(good, 'destination'),
  qtest: (good: GoodRun) => qtestPoints(good, 'destination'),
};

for (const [what, pointsOf] of Object.entries(POINTS)) {
  t.test(what, async (t) => {
    await withoutLeak(t, async () => {
      const points = pointsOf(await goodUpgrade('cpr-transfer'));
      t.ok(points.length > 5, `${points.length} runs`);
      t.same(await sweepUpgrade('cpr-transfer', points), []);
    });
  });
}
