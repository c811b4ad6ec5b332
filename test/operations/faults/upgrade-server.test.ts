// SPDX-License-Identifier: Apache-2.0
/** What the device's server is asked in an upgrade by cpr-transfer goes wrong, each time something else. */
import t from 'tap';
import { withoutLeak } from '../../support/closes.js';
import { serverPoints } from './sweep.js';
import { goodUpgrade, sweepUpgrade } from './upgrade-sweep.js';

t.test('the server', async (t) => {
  await withoutLeak(t, async () => {
    const points = serverPoints(await goodUpgrade('cpr-transfer'), 'source');
    t.ok(points.length > 20, `${points.length} runs`);
    t.same(await sweepUpgrade('cpr-transfer', points), []);
  });
});
