// SPDX-License-Identifier: Apache-2.0
/** One VMM follows another, as a state machine: the table of all states and events, and what holds in every history. */

import fc from 'fast-check';
import t from 'tap';
import {
  idleNextVmm,
  type NextVmmEffect,
  type NextVmmEvent,
  type NextVmmPhase,
  type NextVmmState,
  stepNextVmm,
} from '../../src/migration/index.js';
import { Errno, RequestError } from '../../src/wire/index.js';

type Outcome = readonly [NextVmmPhase, ...NextVmmEffect[]] | number;
const { EBUSY, EINVAL, ENOTCONN } = Errno;

/** `phase`, and who is there: 1 the first, 2 the second; `!` when the time is over. */
function stateOf(name: string): NextVmmState {
  const [phase, who = ''] = name.split(' ');
  return {
    phase: phase as NextVmmPhase,
    first: who.includes('1'),
    second: who.includes('2'),
    expired: who.includes('!'),
  };
}

const ACTIONS = ['await', 'promote', 'commit', 'roll-back', 'expires'] as const;

const TABLE: Record<string, readonly Outcome[]> = {
  //             await       promote              commit                             roll-back                          expires
  none: [ENOTCONN, EINVAL, ['none'], ['none'], ['none']],
  'none 1': [['awaited'], EINVAL, ['none'], ['none'], ['none']],
  awaited: [EBUSY, ENOTCONN, EINVAL, ['none', 'release'], ['none', 'release']],
  'awaited 1': [EBUSY, ENOTCONN, EINVAL, ['none'], ['none']],
  'arrived 2': [EBUSY, ['none', 'exchange'], EINVAL, ['none', 'end-second', 'release'], ['arrived']],
  'arrived 12': [EBUSY, ['promoted', 'exchange'], EINVAL, ['none', 'end-second'], ['arrived']],
  'promoted 1': [EBUSY, EINVAL, ['none', 'end-first', 'release'], ['none', 'exchange'], ['promoted']],
  'promoted 12': [EBUSY, EINVAL, ['none', 'end-first'], ['none', 'exchange', 'end-second'], ['promoted']],
};

/** What happens to the connections; only what can. */
const HAPPENS: readonly [string, NextVmmEvent, string, ...NextVmmEffect[]][] = [
  ['awaited 1', 'arrives', 'arrived 12'],
  ['awaited', 'arrives', 'arrived 2'],
  ['awaited 1', 'first-leaves', 'awaited'],
  ['arrived 12', 'first-leaves', 'arrived 2'],
  ['arrived 12', 'second-leaves', 'awaited 1'],
  ['arrived 2', 'second-leaves', 'awaited'],
  ['arrived 12!', 'second-leaves', 'none 1'],
  ['arrived 2!', 'second-leaves', 'none', 'release'],
  ['promoted 12', 'first-leaves', 'none 1'],
  ['promoted 12', 'second-leaves', 'promoted 1'],
  ['promoted 1', 'first-leaves', 'none', 'release'],
];

t.test('every state and every action', async (t) => {
  for (const [name, outcomes] of Object.entries(TABLE)) {
    for (const [index, wanted] of outcomes.entries()) {
      const event = ACTIONS[index]!;
      const what = `${name}: ${event}`;
      const state = stateOf(name);
      if (typeof wanted === 'number') {
        const refused = (error: unknown) => error instanceof RequestError && error.errno === wanted;
        try {
          stepNextVmm(state, event);
          t.fail(`${what} is not refused`);
        } catch (error) {
          t.ok(refused(error), what);
        }
        continue;
      }
      const [phase, ...effects] = wanted;
      const next = stepNextVmm(state, event);
      t.equal(next.state.phase, phase, what);
      t.strictSame(next.effects, effects, what);
      if (event === 'roll-back') t.equal(next.state.first, state.first, what);
    }
  }
});

t.test('what happens to the connections', async (t) => {
  for (const [from, event, to, ...effects] of HAPPENS) {
    const next = stepNextVmm(stateOf(from), event);
    t.strictSame(next, { state: stateOf(to), effects }, `${from}: ${event}`);
  }
});

/**
 * A world of connections that obeys the effects. At every moment the device is with one of the two or with no one, and
 * it is released exactly when no one who could have it is left.
 */
t.test('in every history', async () => {
  const events: NextVmmEvent[] = [
    'await',
    'arrives',
    'promote',
    'commit',
    'roll-back',
    'first-leaves',
    'second-leaves',
    'expires',
  ];
  const history = fc.array(fc.constantFrom(...events), { maxLength: 30 });
  fc.assert(
    fc.property(history, (events) => {
      let state = idleNextVmm(true);
      let owner: 'first' | 'second' | 'neither' = 'first';
      let there = { first: true, second: false };
      for (const event of events) {
        if (event === 'first-leaves' && (!there.first || state.phase === 'none')) continue;
        if (event === 'second-leaves' && !there.second) continue;
        let next: ReturnType<typeof stepNextVmm>;
        try {
          next = stepNextVmm(state, event);
        } catch (error) {
          if (!(error instanceof RequestError)) throw error;
          continue;
        }
        if (event === 'arrives') there.second = true;
        if (event === 'first-leaves') there.first = false;
        if (event === 'second-leaves') there.second = false;
        for (const effect of next.effects) {
          if (effect === 'exchange') owner = owner === 'first' ? 'second' : 'first';
          else if (effect === 'end-first') there.first = false;
          else if (effect === 'end-second') there.second = false;
          else owner = 'neither';
        }
        state = next.state;
        if (state.phase !== 'none') {
          if (state.first !== there.first || state.second !== there.second) return false;
          if (owner !== (state.phase === 'promoted' ? 'second' : 'first')) return false;
          continue;
        }
        // It is over: who has the device is there and alone, or no one has it and no one is there.
        if (there.first && there.second) return false;
        if (owner === 'neither' ? there.first || there.second : !there[owner]) return false;
        if (state.first !== (owner !== 'neither')) return false;
        if (owner === 'neither') return true;
        owner = 'first';
        there = { first: true, second: false };
      }
      return true;
    }),
    { numRuns: 2000 },
  );
});
