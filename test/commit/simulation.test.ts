// SPDX-License-Identifier: Apache-2.0
/** The commit under faults, schedule by schedule; and the simulator replays, and has met what it is for. */

import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import t from 'tap';
import { PACKAGE_ROOT } from '../../src/package-root.js';
import { Agenda } from '../../tools/simulate/agenda.js';
import { Random } from '../../tools/simulate/random.js';
import { runSchedule } from '../../tools/simulate/schedule.js';

/** Schedules in the suite; `npm run simulate -- --seeds N` runs more. */
const SCHEDULES = 20_000;

t.test('never two, and one in the end', async (t) => {
  const features = new Set<string>();
  const violations: string[] = [];
  for (let seed = 1; seed <= SCHEDULES; seed++) {
    const result = runSchedule(seed);
    if (result.violation !== undefined) violations.push(`seed ${seed}: ${result.violation}`);
    for (const feature of result.features) features.add(feature);
  }
  t.same(violations, [], 'npm run simulate -- --seed S shows each');
  // Schedules in which nothing happens would pass too.
  const expected = [
    ...[
      'witness',
      'no witness',
      'outcome moved',
      'outcome returned',
      'outcome lost',
      'runs',
      'the VM is lost',
    ],
    ...['only source and destination', 'only source and witness', 'only destination and witness'],
    ...['an operator had to decide', 'the one that is cut off has the right', 'a machine is gone for good'],
    ...[
      'refused stale',
      'refused too-late',
      'refused not-fenced',
      'refused nothing-to-decide',
      'refused no-right',
    ],
  ];
  t.same(
    expected.filter((feature) => !features.has(feature)),
    [],
    'what is to be simulated has come about',
  );
});

t.test('a seed is the same schedule every time', async (t) => {
  for (const seed of [1, 77, 198, 1015, 4242]) {
    const [one, two] = [runSchedule(seed, { traced: true }), runSchedule(seed, { traced: true })];
    t.same(one, two);
    t.ok(one.trace.length > 10);
    t.same([...runSchedule(seed).features], [...one.features], 'traced or not');
  }
});

t.test('seeds that have found faults, most of them beyond the first 20,000', async (t) => {
  for (const seed of [32775, 43148, 50431, 60935, 331974, 336341, 418027])
    t.equal(runSchedule(seed).violation, undefined, `seed ${seed}`);
});

t.test('the command', async (t) => {
  const main = join(PACKAGE_ROOT, 'dist/tools/simulate/main.js');
  const run = (...args: string[]) => spawnSync(process.execPath, [main, ...args], { encoding: 'utf8' });
  const many = run('--seeds', '50', '--from', '7');
  t.equal(many.status, 0);
  t.match(many.stdout, /50 schedules from seed 7, no violation/);
  const one = run('--seed', '11');
  t.match(one.stdout, /the faults have ended/);
  t.match(one.stdout, /seed 11: all as it must be\n$/);
  t.equal(run('--seeds', 'x').status, 1);
});

t.test('the agenda: in the order of time, and of one time in the order of entry', async (t) => {
  const random = new Random(1);
  const agenda = new Agenda();
  const entries = Array.from({ length: 500 }, (_, order) => ({ at: random.between(0, 50), order }));
  const seen: typeof entries = [];
  for (const entry of entries) agenda.at(entry.at, () => seen.push(entry));
  while (agenda.next(40));
  t.equal(seen.length, entries.filter(({ at }) => at <= 40).length, 'up to the limit');
  while (agenda.next(50));
  t.same(
    seen,
    [...entries].sort((a, b) => a.at - b.at || a.order - b.order),
  );
});
