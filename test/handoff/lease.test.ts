// SPDX-License-Identifier: Apache-2.0
/** The lease: which of the two ends of a handoff has the device. */

import t from 'tap';
import { isRunning, Lease, thisProcess } from '../../src/handoff/index.js';
import { withoutLeak } from '../support/closes.js';
import { memory } from './support.js';

t.test('what should be a lease and is none is refused', (t) =>
  withoutLeak(t, async () => {
    const short = memory();
    t.throws(() => Lease.open(short), { code: 'DEVSTATE_E_HANDOFF_BUNDLE' });
    t.notOk(short.isOpen);
    const zeros = memory();
    t.throws(() => Lease.open(zeros), /holds something else/);
  }),
);

t.test('only one of the two ends ever has the lease', (t) =>
  withoutLeak(t, async () => {
    const giver = Lease.create(6);
    const receiver = Lease.open(giver.fd.duplicate());
    t.equal(receiver.generation, 6);
    t.notOk(receiver.take(), 'it has not been offered');
    t.ok(giver.offer());
    t.ok(giver.takeBack());
    t.notOk(receiver.take(), 'it was taken back');
    t.ok(giver.offer());
    t.notOk(receiver.take(), 'that offer is over');
    t.ok(receiver.take(giver.number));
    t.ok(giver.isTaken);
    t.notOk(giver.takeBack(), 'it was taken');
    giver.close();
    receiver.close();
  }),
);

t.test('a lease changes hands again and again, and always has one holder', (t) =>
  withoutLeak(t, async () => {
    const first = Lease.create(1);
    const wrong = (what: string): void => {
      t.fail(what);
    };
    const ends = [first, Lease.open(first.fd.duplicate()), Lease.open(first.fd.duplicate())];
    const holders = (): number[] => ends.flatMap((lease, index) => (lease.isHeld ? [index] : []));
    t.same(holders(), [0]);
    // Beyond the number of records, to and fro, some offers taken back.
    let holder = 0;
    for (let round = 1; round <= 1000; round++) {
      const giver = ends[holder]!;
      const stale = ends[(holder + 1) % 3]!;
      if (!giver.offer() || holders().length > 0)
        return wrong(`round ${round}: somebody holds the lease while it is offered`);
      const earlier = giver.number;
      if (round % 7 === 0) {
        if (!giver.takeBack() || stale.take(earlier) || !giver.offer())
          return wrong(`round ${round}: taken back`);
        if (stale.take(earlier))
          return wrong(`round ${round}: a later offer is not taken with an earlier one`);
      }
      holder = (holder + 1 + (round % 2)) % 3;
      if (!ends[holder]!.take(giver.number) || !giver.isTaken) return wrong(`round ${round}: not taken`);
      if (giver.offer() || giver.takeBack()) return wrong(`round ${round}: offered what is another's`);
      if (holders().join() !== `${holder}`) return wrong(`round ${round}: held by ${holders()}`);
    }
    t.equal(first.generation, 1 + first.number);
    t.same(first.owner, thisProcess());
    for (const lease of ends) lease.close();
  }),
);

t.test('a lease is taken from a process that has ended, and from no other', (t) =>
  withoutLeak(t, async () => {
    const ours = Lease.create(1);
    t.ok(ours.offer());
    const theirs = Lease.open(ours.fd.duplicate());
    t.ok(theirs.take(ours.number));
    const owner = thisProcess();
    t.ok(isRunning(owner));
    t.notOk(isRunning({ ...owner, startTime: owner.startTime - 1 }), 'another process of that pid');
    t.ok(
      isRunning({ ...owner, startTime: 1, namespace: owner.namespace + 1 }),
      'who knows, in another namespace',
    );
    t.ok(isRunning({ ...owner, startTime: 0 }), 'who knows, without /proc');
    t.notOk(ours.reclaim({ ...owner, pid: 1 }), 'it is not that one that has it');
    t.notOk(ours.isHeld);
    t.ok(ours.reclaim(owner));
    t.ok(ours.isHeld);
    t.notOk(theirs.isHeld, 'the former holder has lost it');
    t.notOk(theirs.offer());
    ours.close();
    theirs.close();
  }),
);
