// SPDX-License-Identifier: Apache-2.0
/**
 * The phases of a migration in another order do not compile: the compiler checks each line below, and refuses an
 * expectation that is not met.
 */
import t from 'tap';
import type { commit } from '../../../src/operations/migrate/commit.js';
import type { land } from '../../../src/operations/migrate/land.js';
import { phaseOf, type Revocable, type State, watchedOf } from '../../../src/operations/migrate/phases.js';
import type { precopy } from '../../../src/operations/migrate/precopy.js';
import type { rollback } from '../../../src/operations/migrate/rollback.js';
import type { switchover } from '../../../src/operations/migrate/switchover.js';
import type { replay } from '../../../src/operations/migrate/view.js';

/** Whether a function takes `From` first. */
type Takes<
  Phase extends (first: never, ...more: never[]) => unknown,
  From,
> = From extends Parameters<Phase>[0] ? true : false;
type Replayed = Parameters<typeof replay>[1];

t.test('each phase takes what the one before has reached, and nothing less', async (t) => {
  const yes: [
    Takes<typeof precopy, State<'checked'>>,
    Takes<typeof switchover, State<'at-switchover'>>,
    Takes<typeof land, State<'stopped'>>,
    Takes<typeof commit, State<'landed'>>,
    Takes<typeof rollback, Revocable>,
    State<'stopped'>['devices'][number] extends Replayed ? true : false,
  ] = [true, true, true, true, true, true];
  const no: [
    Takes<typeof switchover, State<'checked'>>,
    Takes<typeof land, State<'at-switchover'>>,
    Takes<typeof land, State<'stopping'>>,
    Takes<typeof commit, State<'stopped'>>,
    Takes<typeof rollback, State<'committed'>>,
    State<'stopping'>['devices'][number] extends Replayed ? true : false,
  ] = [false, false, false, false, false, false];
  t.equal(yes.length + no.length, 12, 'as the compiler says');
});

t.test('what is watched, by how far the operation has come', async (t) => {
  const stand = { resets: 1, resumes: 2 };
  const landing = { tag: 'landing', stand, sourceSpent: false, resetThere: false };
  const spent = { ...landing, sourceSpent: true };
  const table: readonly [tag: Revocable['tag'], phase: string, moment: object][] = [
    ['checked', 'check', { tag: 'idle' }],
    ['sending', 'precopy', { tag: 'idle' }],
    ['rehearsed', 'precopy', { tag: 'idle' }],
    ['configured', 'precopy', { tag: 'idle' }],
    ['migrating', 'precopy', { tag: 'migrating' }],
    ['at-switchover', 'precopy', { tag: 'migrating' }],
    ['stopping', 'switchover', { tag: 'standing', stand }],
    ['stopped', 'switchover', { tag: 'standing', stand }],
    ['landing', 'land', landing],
    ['source-spent', 'land', spent],
    ['resetting', 'land', { ...spent, resetThere: true }],
    ['landed', 'land', { ...spent, resetThere: true }],
    ['committing', 'commit', { tag: 'over' }],
    ['in-doubt', 'commit', { tag: 'over' }],
  ];
  for (const [tag, phase, moment] of table) {
    const state = { tag, stand } as Revocable;
    t.equal(phaseOf(state), phase, tag);
    t.same(watchedOf(state).moment, moment, tag);
  }
});
