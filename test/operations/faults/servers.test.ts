// SPDX-License-Identifier: Apache-2.0
/** What device servers are asked goes wrong, each time something else. */
import t from 'tap';
import { withoutLeak } from '../../support/closes.js';
import { type GoodRun, goodRun, serverPoints, sweep } from './sweep.js';

const options = { taps: true };
const POINTS = {
  "the source's server": (good: GoodRun) => serverPoints(good, 'source'),
  "the destination's server": (good: GoodRun) => serverPoints(good, 'destination'),
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
