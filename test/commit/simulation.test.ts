// SPDX-License-Identifier: Apache-2.0
/** The commit under faults, schedule by schedule; and that the simulator finds a protocol that is broken on purpose. */

import t from 'tap';
import type { Token, WitnessAnswer } from '../../src/commit/index.js';
import { PROTOCOL, type Protocol } from '../../tools/simulate/protocol.js';
import { runSchedule } from '../../tools/simulate/schedule.js';

/** Schedules in the suite; `npm run simulate -- --seeds N` runs more. */
const SCHEDULES = 5000;
/** A broken protocol shows within so many. */
const ENOUGH = 5000;

t.test('never two, and one in the end', async (t) => {
  const violated: string[] = [];
  const features = new Set<string>();
  for (let seed = 1; seed <= SCHEDULES; seed++) {
    const result = runSchedule(seed);
    for (const feature of result.features) features.add(feature);
    if (result.violation !== undefined) violated.push(`seed ${seed}: ${result.violation}`);
  }
  t.same(violated, []);
  // Schedules in which nothing happens would pass too.
  for (const outcome of ['moved', 'returned', 'lost']) t.ok(features.has(`outcome ${outcome}`), outcome);
});

t.test('a seed is the same schedule every time', async (t) => {
  for (const seed of [1, 77, 4242])
    t.same(runSchedule(seed, { traced: true }).trace, runSchedule(seed, { traced: true }).trace);
});

/** Says of records of these types that they are durable before they are. */
const early =
  (...types: string[]): Protocol['waitsForDisk'] =>
  ({ type }) =>
    !types.includes(type);

const always: WitnessAnswer = { type: 'set' };

/** What is broken, and how. */
const BROKEN: Readonly<Record<string, Partial<Protocol>>> = {
  'the source grants before its promise is durable': { waitsForDisk: early('granted') },
  'the destination runs before the grant is durable': { waitsForDisk: early('taken') },
  'the source goes back before that is durable': { waitsForDisk: early('back') },
  'the witness does not compare': { compareAndSet: () => always },
  'the witness compares the owner only': {
    compareAndSet: (current: Token, expected: Token): WitnessAnswer =>
      current.owner === expected.owner ? always : { type: 'conflict', current },
  },
  'the operator decides without a fence': { operatorFences: false },
  'a witness that cannot be reached is taken for one that grants, at the source': {
    stepSource: (state, input) =>
      PROTOCOL.stepSource(
        state,
        input.type === 'answer' && input.answer.type === 'unreachable' ? { ...input, answer: always } : input,
      ),
  },
  'a witness that cannot be reached is taken for one that grants, at the destination': {
    stepDestination: (state, input) =>
      PROTOCOL.stepDestination(
        state,
        input.type === 'answer' && input.answer.type === 'unreachable' ? { ...input, answer: always } : input,
      ),
  },
  'the source takes the token of somebody else for its own': {
    stepSource: (state, input) =>
      PROTOCOL.stepSource(
        state,
        input.type === 'answer' && input.answer.type === 'conflict' ? { ...input, answer: always } : input,
      ),
  },
  'the destination takes the token of somebody else for its own': {
    stepDestination: (state, input) =>
      PROTOCOL.stepDestination(
        state,
        input.type === 'answer' && input.answer.type === 'conflict' ? { ...input, answer: always } : input,
      ),
  },
  'the source runs when it is told that the connection is cut': {
    stepSource: (state, input) => {
      const step = PROTOCOL.stepSource(state, input);
      return state.name === 'granted' && input.type === 'disconnected'
        ? { ...step, outputs: [...step.outputs, { type: 'run' }] }
        : step;
    },
  },
};

for (const [what, broken] of Object.entries(BROKEN)) {
  t.test(what, async (t) => {
    const protocol = { ...PROTOCOL, ...broken };
    let seed = 1;
    while (seed <= ENOUGH && runSchedule(seed, { protocol }).violation === undefined) seed++;
    t.ok(seed <= ENOUGH, `found by seed ${seed}`);
  });
}
