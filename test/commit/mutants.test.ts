// SPDX-License-Identifier: Apache-2.0
/** The simulator finds each way of breaking the protocol that there is in mutants.ts. */

import t from 'tap';
import { runSchedule } from '../../tools/simulate/schedule.js';
import { mutants } from './mutants.js';

t.setTimeout(900_000);

/** Seeds within which a mutant is found. */
const BOUND = 40_000;

for (const { name, protocol } of mutants) {
  t.test(name, async (t) => {
    let seed = 1;
    while (seed <= BOUND && runSchedule(seed, { protocol }).violation === undefined) seed++;
    const { violation } = runSchedule(seed, { protocol });
    t.ok(seed <= BOUND && violation !== undefined, `found by seed ${seed}: ${violation}`);
    t.equal(
      runSchedule(seed, { protocol, traced: true }).violation,
      violation,
      'and it replays, with a trace',
    );
  });
}

t.test('there are at least ten', async (t) => {
  t.ok(mutants.length >= 10);
});
