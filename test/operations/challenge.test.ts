// SPDX-License-Identifier: Apache-2.0
/** When reads that arrived prove that they are the ones that were made: a challenge among others' reads, and without it. */

import fc from 'fast-check';
import t from 'tap';
import { createChallenge, judge } from '../../src/operations/identity/index.js';
import type { ConfigRead } from '../../src/wire/index.js';

/** A reproducible source of random numbers for a challenge. */
function randomOf(seed: number): (bound: number) => number {
  let state = seed >>> 0;
  return (bound) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) % bound;
  };
}

const challenges = fc.integer({ min: 0, max: 0xffffffff }).map((seed) => createChallenge(randomOf(seed)));
const read = fc.record({ offset: fc.integer({ min: 0, max: 0xff }), length: fc.constantFrom(1, 2, 4) });

/** `noise` between the reads of `challenge`, as `places` say. */
function mixed(challenge: readonly ConfigRead[], noise: readonly ConfigRead[], places: readonly number[]) {
  const stream = [...challenge];
  for (const [index, one] of noise.entries())
    stream.splice((places[index] ?? 0) % (stream.length + 1), 0, one);
  return stream;
}

t.test('a challenge that arrived is found among other reads', async (t) => {
  fc.assert(
    fc.property(
      challenges,
      fc.array(read, { maxLength: 60 }),
      fc.array(fc.nat(), { maxLength: 60 }),
      (challenge, noise, places) => judge(challenge, mixed(challenge, noise, places)) === 'proven',
    ),
  );
  t.pass();
});

t.test('what is not the challenge never proves anything', async (t) => {
  fc.assert(
    fc.property(challenges, challenges, fc.array(read, { maxLength: 100 }), (challenge, other, noise) => {
      const isOther = JSON.stringify(challenge) !== JSON.stringify(other);
      return !isOther || judge(challenge, [...other, ...noise]) !== 'proven';
    }),
  );
  t.equal(judge(createChallenge(), []), 'absent');
  t.equal(judge(createChallenge(), createChallenge()), 'absent');
});

t.test('a challenge that lacks one read, or has two exchanged, did not arrive', async (t) => {
  const challenge = createChallenge();
  for (const index of challenge.keys()) {
    const without = challenge.filter((_, at) => at !== index);
    t.equal(judge(challenge, without), 'absent', `without read ${index}`);
  }
  const at = challenge.findIndex((one, index) => one !== challenge[index + 1]);
  const exchanged = [
    ...challenge.slice(0, at),
    challenge[at + 1]!,
    challenge[at]!,
    ...challenge.slice(at + 2),
  ];
  t.not(judge(challenge, exchanged), 'proven');
});

t.test('a guest that reads everything all the time proves nothing', async (t) => {
  const reads = Array.from({ length: 3 }, () => createChallenge()).flat();
  const flood = Array.from({ length: 200 }, () => reads).flat();
  t.equal(judge(createChallenge(), flood), 'unclear');
});

t.test('challenges differ, and hold more than 64 bits', async (t) => {
  const seen = new Set(Array.from({ length: 1000 }, () => JSON.stringify(createChallenge())));
  t.equal(seen.size, 1000);
});
