// SPDX-License-Identifier: Apache-2.0
/** An operation in phases fails from the state that it has reached, also in the middle of a phase. */
import t from 'tap';
import { DevstateError } from '../../src/errors.js';
import {
  Course,
  checking,
  inPhases,
  type Phases,
  type Reach,
  type Rollback,
} from '../../src/operations/phased.js';

type State = { readonly tag: 'checked' } | { readonly tag: 'half'; readonly done: number };

const UNDONE: Rollback = { left: 'all is as it was', problems: [], remarks: ['but for the weather'] };

/** An operation that fails with `error` when it has reached `half`; what was asked of it, in order. */
function failing(error: unknown, outcome: Rollback, seen: unknown[] = []): Phases<State, never> {
  return {
    proceed: async (reach: Reach<State>) => {
      seen.push(reach({ tag: 'half', done: 1 }));
      throw error;
    },
    phaseOf: ({ tag }) => `phase of ${tag}`,
    causeOf: async (state, why) => {
      seen.push(['cause', state.tag]);
      return why;
    },
    rollback: async (state) => {
      seen.push(['rollback', state]);
      return outcome;
    },
    stuck: (problems) => `stuck: ${problems}`,
  };
}

t.test('what was reached is rolled back, after the cause was asked for', async (t) => {
  const seen: unknown[] = [];
  const course = new Course<State>({ tag: 'checked' });
  const error = new DevstateError('DEVSTATE_E_REFUSED', 'no', { errno: 16 });
  await t.rejects(inPhases(course, failing(error, UNDONE, seen)), {
    code: 'DEVSTATE_E_REFUSED',
    errno: 16,
    message: 'phase of half: no; all is as it was; but for the weather',
    cause: error,
  });
  const half = { tag: 'half', done: 1 };
  t.same(seen, [half, ['cause', 'half'], ['rollback', half]]);
  t.same(course.state, half);
});

t.test('one that cannot be undone says so', async (t) => {
  const problems = ['this', 'that'];
  const phases = failing(new Error('no'), { left: '', problems, remarks: [] });
  await t.rejects(inPhases(new Course<State>({ tag: 'checked' }), phases), {
    code: 'DEVSTATE_E_ROLLBACK',
    message: 'phase of half: no; stuck: this; that',
  });
});

t.test('one that completes undoes nothing', async (t) => {
  const seen: unknown[] = [];
  const phases = { ...failing(undefined, UNDONE, seen), proceed: async () => 'done' };
  t.equal(await inPhases(new Course<State>({ tag: 'checked' }), phases), 'done');
  t.same(seen, []);
});

t.test('a check that fails says that it was the check', async (t) => {
  const refused = Promise.reject(new DevstateError('DEVSTATE_E_USAGE', 'no'));
  await t.rejects(checking(refused), { code: 'DEVSTATE_E_USAGE', message: 'check: no' });
});
