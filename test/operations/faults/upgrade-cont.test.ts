// SPDX-License-Identifier: Apache-2.0
/** The new QEMU was told of the device, and does not run the VM: the old one has it as before, or `recover` gives it back. */
import t from 'tap';
import { withoutLeak } from '../../support/closes.js';
import { qmpPoints } from './sweep.js';
import { goodUpgrade, sweepUpgrade } from './upgrade-sweep.js';

t.test('cont', async (t) => {
  await withoutLeak(t, async () => {
    const points = qmpPoints(await goodUpgrade('cpr-transfer'), 'destination').filter(
      ({ name }) => name === 'cont',
    );
    t.ok(points.length >= 3, `${points.length} runs`);
    t.same(await sweepUpgrade('cpr-transfer', points), []);
  });
});
