// SPDX-License-Identifier: Apache-2.0
/** Records, messages and tokens: what is accepted from outside, and what a journal says. */

import fc from 'fast-check';
import t from 'tap';
import {
  attemptSchema,
  type CommitRecord,
  destinationMessageSchema,
  highestGeneration,
  isOwnedSince,
  lastAttempt,
  nextGeneration,
  recordSchema,
  sameToken,
  sourceMessageSchema,
  tokenFor,
  tokenSchema,
} from '../../src/commit/index.js';
import { attempt } from './states.js';

const of = (generation: number) => ({ vm: 'vm', generation });
const begun = (generation: number): CommitRecord => ({
  ...{ type: 'begun', ...of(generation), attempt: { ...attempt, generation } },
});
const incoming = (generation: number): CommitRecord => ({
  ...{ type: 'incoming', ...of(generation), attempt: { ...attempt, generation } },
});

t.test('the last attempt of a journal', async (t) => {
  t.equal(lastAttempt([]), undefined);
  t.equal(lastAttempt([{ type: 'gaveUp', ...of(7) }]), undefined);
  const journal: CommitRecord[] = [
    begun(5),
    { type: 'granted', ...of(5), arbiter: 'none' },
    { type: 'moved', ...of(5) },
    incoming(6),
    // Comes late, and is of before.
    { type: 'closed', ...of(5), outcome: 'moved' },
    { type: 'taken', ...of(6), arbiter: 'none', why: 'grant' },
  ];
  const last = lastAttempt(journal);
  t.match(last, { role: 'destination', attempt: { generation: 6 } });
  t.same(
    last?.records.map(({ type }) => type),
    ['incoming', 'taken'],
  );
  const again = lastAttempt([...journal, begun(7)]);
  t.match(again, { role: 'source', attempt: { generation: 7 } });
  t.equal(again?.records.length, 1, 'a grant of an earlier attempt says nothing about this one');
  t.equal(highestGeneration(journal), 6);
  t.equal(nextGeneration(highestGeneration(journal), 9), 10);
  t.equal(nextGeneration(), 1);
});

t.test('tokens', async (t) => {
  const token = tokenFor(attempt, 'B');
  t.same(token, { vm: 'vm', generation: 7, owner: 'B' });
  t.ok(sameToken(token, { ...token }));
  for (const other of [{ vm: 'w' }, { generation: 8 }, { owner: 'A' }])
    t.notOk(sameToken(token, { ...token, ...other }));
  t.ok(isOwnedSince(attempt, { ...token, generation: 9 }, 'B'));
  t.notOk(isOwnedSince(attempt, { ...token, generation: 6 }, 'B'), 'of before the attempt');
  t.notOk(isOwnedSince(attempt, token, 'A'));
  t.notOk(isOwnedSince(attempt, { ...token, vm: 'w' }, 'B'));
});

t.test('what is refused from outside', async (t) => {
  const bad: [{ safeParse(value: unknown): { success: boolean } }, unknown][] = [
    [tokenSchema, { vm: '', generation: 1, owner: 'A' }],
    [tokenSchema, { vm: 'vm', generation: -1, owner: 'A' }],
    [tokenSchema, { vm: 'vm', generation: 1.5, owner: 'A' }],
    [tokenSchema, { vm: 'vm', generation: 2 ** 53, owner: 'A' }],
    [tokenSchema, { vm: 'v'.repeat(256), generation: 1, owner: 'A' }],
    [tokenSchema, { vm: 'vm', generation: 1, owner: 'A', more: 1 }],
    [attemptSchema, { ...attempt, destination: 'A' }],
    [attemptSchema, { ...attempt, generation: attempt.from.generation }],
    [attemptSchema, { ...attempt, from: { ...attempt.from, owner: 'B' } }],
    [attemptSchema, { ...attempt, from: { ...attempt.from, vm: 'w' } }],
    [sourceMessageSchema, { type: 'grant', ...of(7) }],
    [sourceMessageSchema, { type: 'runs', ...of(7) }],
    [destinationMessageSchema, { type: 'grant', ...of(7), arbiter: 'none' }],
    [destinationMessageSchema, { type: 'runs' }],
    [recordSchema, { type: 'back', ...of(7), why: 'because' }],
    [recordSchema, { type: 'granted', ...of(7), arbiter: 'none', more: 1 }],
    // What carries an attempt is of the same VM and generation.
    [sourceMessageSchema, { type: 'offer', ...of(8), attempt }],
    [recordSchema, { type: 'begun', ...of(8), attempt }],
    [recordSchema, { type: 'incoming', vm: 'w', generation: 7, attempt }],
  ];
  for (const [schema, value] of bad)
    t.notOk(schema.safeParse(value).success, JSON.stringify(value).slice(0, 80));
  t.ok(attemptSchema.safeParse(attempt).success);
  t.ok(sourceMessageSchema.safeParse({ type: 'offer', ...of(7), attempt }).success);
  t.ok(recordSchema.safeParse(begun(7)).success);
  t.ok(recordSchema.safeParse(incoming(7)).success);
});

t.test('whatever a journal holds, only the records of one attempt count', async (t) => {
  const types = ['begun', 'incoming', 'granted', 'taken', 'gaveUp'];
  const record = fc.tuple(fc.constantFrom(...types), fc.integer({ min: 5, max: 9 }));
  fc.assert(
    fc.property(fc.array(record), (list) => {
      const journal = list.map(([type, generation]): CommitRecord => {
        if (type === 'begun') return begun(generation);
        if (type === 'incoming') return incoming(generation);
        if (type === 'granted') return { type, ...of(generation), arbiter: 'none' };
        if (type === 'taken') return { type, ...of(generation), arbiter: 'none', why: 'grant' };
        return { type: 'gaveUp', ...of(generation) };
      });
      const last = lastAttempt(journal);
      if (last === undefined) return !journal.some(({ type }) => type === 'begun' || type === 'incoming');
      return last.records.every(({ generation }) => generation === last.attempt.generation);
    }),
  );
  t.pass();
});
