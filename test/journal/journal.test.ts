// SPDX-License-Identifier: Apache-2.0
/** The crash journal cut at every store: a successor finds the state before a transaction or after it, never a mix. */

import fc from 'fast-check';
import t from 'tap';
import {
  EFFECTS_SLOT,
  Journal,
  type JournalOptions,
  Transactions,
  Transfer,
} from '../../src/journal/index.js';

const SLOTS = [
  { name: 'a', capacity: 24 },
  { name: 'b', capacity: 200 },
  { name: 'c', capacity: 8 },
  { name: 'd', capacity: 64 },
];
const OPTIONS = { messageLength: 4096 };

type Put = readonly [slot: number, bytes: Uint8Array];

const put: fc.Arbitrary<Put> = fc
  .nat(SLOTS.length - 1)
  .chain((slot) => fc.tuple(fc.constant(slot), fc.uint8Array({ maxLength: SLOTS[slot]!.capacity })));
const transactions = fc.array(fc.array(put, { maxLength: 5 }), { minLength: 1, maxLength: 6 });

function memoryFor(slots = SLOTS, options: JournalOptions = OPTIONS): Uint8Array {
  return new Uint8Array(new ArrayBuffer(Journal.lengthOf(slots, options)));
}

function stateOf(journal: Journal): (string | undefined)[] {
  return SLOTS.map((_, slot) => {
    const bytes = journal.get(slot);
    return bytes === undefined ? undefined : Buffer.from(bytes).toString('hex');
  });
}

/** What the memory may be if the process ends within the store that made `after` of `before`: a part of a longer one. */
function* cuts(before: Uint8Array, after: Uint8Array): Generator<Uint8Array> {
  yield after;
  const changed = [...after.keys()].filter((at) => after[at] !== before[at]);
  const [first, last] = [changed[0], changed.at(-1)];
  if (first === undefined || last === undefined || last - first < 8) return;
  for (const end of [first + 1, Math.floor((first + last) / 2)]) {
    const torn = before.slice();
    torn.set(after.subarray(0, end));
    yield torn;
  }
}

t.test(
  'cut at every store: the state before or after, and the next transaction is none the worse',
  async (t) => {
    fc.assert(
      fc.property(transactions, (list) => {
        const memory = memoryFor();
        let before = memory.slice();
        let watching = false;
        /** The committed state as it should be, and as it is to become. */
        let [committed, next] = [
          SLOTS.map(() => undefined as string | undefined),
          [] as (string | undefined)[],
        ];
        let count = 0;
        const onStore = (): void => {
          if (!watching) return;
          const after = memory.slice();
          for (const cut of cuts(before, after)) {
            const found = Journal.open(cut.slice(), SLOTS, OPTIONS);
            const state = stateOf(found);
            const expected = found.committed === count ? committed : next;
            if (found.committed !== count && found.committed !== count + 1)
              throw new Error('another transaction');
            if (JSON.stringify(state) !== JSON.stringify(expected))
              throw new Error(`${state} instead of ${expected}`);
            // What the other began, and did not commit, does not come back with the next commit.
            found.put(2, Uint8Array.of(1, 2, 3));
            found.commit();
            const later = stateOf(found);
            if (later[2] !== '010203' || [0, 1, 3].some((slot) => later[slot] !== expected[slot]))
              throw new Error('a part of a transaction that was not committed');
          }
          before = after;
        };
        const journal = Journal.create(memory, SLOTS, { ...OPTIONS, onStore });
        before = memory.slice();
        watching = true;
        for (const puts of list) {
          next = [...committed];
          for (const [slot, bytes] of puts) {
            next[slot] = Buffer.from(bytes).toString('hex');
          }
          for (const [slot, bytes] of puts) journal.put(slot, bytes);
          journal.commit();
          committed = next;
          count++;
        }
        return JSON.stringify(stateOf(journal)) === JSON.stringify(committed);
      }),
      { numRuns: 60 },
    );
    t.pass();
  },
);

t.test('transaction numbers beyond 32 bits', async (t) => {
  const memory = memoryFor();
  Journal.create(memory, SLOTS, OPTIONS).commit();
  new DataView(memory.buffer).setBigUint64(64, 2n ** 32n - 2n, true);
  for (let i = 0; i < 5; i++) {
    const journal = Journal.open(memory, SLOTS, OPTIONS);
    t.equal(journal.committed, 2 ** 32 - 2 + i);
    if (i > 0) t.same(journal.get(0), Uint8Array.of(i - 1));
    journal.put(0, Uint8Array.of(i));
    journal.commit();
    t.equal(journal.transactionOf(0), journal.committed);
  }
});

t.test('what is no journal, another one, or a damaged one is refused', async (t) => {
  const wrong = { code: 'DEVSTATE_E_JOURNAL' };
  const memory = memoryFor();
  t.throws(() => Journal.open(memory, SLOTS, OPTIONS), wrong, 'nothing was ever written');
  const journal = Journal.create(memory, SLOTS, OPTIONS);
  journal.put(1, new Uint8Array(100).fill(0xab));
  journal.commit();
  t.throws(() => journal.put(2, new Uint8Array(9)), { ...wrong, message: /takes 8 bytes, not 9/ });
  t.throws(() => journal.slot('e'), wrong);
  for (const other of [
    SLOTS.slice(1),
    SLOTS.map((slot) => ({ ...slot, name: `${slot.name}x` })),
    SLOTS.map((slot, index) => (index === 0 ? { ...slot, capacity: 25 } : slot)),
  ])
    t.throws(() => Journal.open(memory.slice(), other, OPTIONS), wrong, JSON.stringify(other));
  t.throws(() => Journal.open(memory.slice(0, 1000), SLOTS, OPTIONS), wrong);
  for (const slots of [
    [{ name: '', capacity: 1 }],
    [{ name: 'a'.repeat(48), capacity: 1 }],
    [{ name: 'a', capacity: 0 }],
    [SLOTS[0]!, SLOTS[0]!],
  ])
    t.throws(() => Journal.lengthOf(slots, OPTIONS), wrong);
  const at = Buffer.from(memory.buffer).indexOf(Buffer.alloc(100, 0xab));
  const damaged = memory.slice();
  damaged[at + 50] = 8;
  t.throws(() => Journal.open(damaged, SLOTS, OPTIONS), { ...wrong, message: /slot b is damaged/ });
  const long = memory.slice();
  new DataView(long.buffer).setUint32(at - 8, 201, true);
  t.throws(() => Journal.open(long, SLOTS, OPTIONS), { ...wrong, message: /201 bytes of 200/ });
  const old = memory.slice();
  old[8] = 2;
  t.throws(() => Journal.open(old, SLOTS, OPTIONS), { ...wrong, message: /version 2/ });
});

t.test('effects: never before the commit, and at least once after it', async (t) => {
  const slots = [...SLOTS, EFFECTS_SLOT];
  const memory = memoryFor(slots);
  const snapshots: { memory: Uint8Array; done: string[] }[] = [];
  const done: string[] = [];
  let watching = false;
  const journal = Journal.create(memory, slots, {
    ...OPTIONS,
    onStore: () => watching && snapshots.push({ memory: memory.slice(), done: [...done] }),
  });
  const log = (into: string[]) => ({
    signal: (fd: number) => void into.push(`signal ${fd}`),
    write: (address: number, bytes: Uint8Array) =>
      void into.push(`write ${address.toString(16)} ${Buffer.from(bytes).toString('hex')}`),
  });
  const made = new Transactions(journal);
  made.effector = log(done);
  made.keep(() => journal.put(0, Uint8Array.of(1)));
  watching = true;
  made.run(() => {
    made.write(0x1_2345_6780, Uint8Array.of(1, 2, 3));
    made.run(() => made.signal(4));
    t.same(done, []);
  });
  const all = ['write 123456780 010203', 'signal 4'];
  t.same(done, all);
  made.signal(5);
  t.same(done, [...all, 'signal 5'], 'at once outside of a transaction');
  for (const { memory, done } of snapshots) {
    const found = Journal.open(memory, slots, OPTIONS);
    const after = new Transactions(found);
    after.effector = log(done);
    const performed = done.length > 0;
    after.redo();
    if (found.committed === 0) t.same(done, [], 'nothing was committed');
    else t.same(done.slice(-2), all, performed ? 'they were, or are again' : 'they are now');
    const again = done.length;
    after.redo();
    t.equal(done.length, again, 'and then no more');
  }
  // Another transaction that sets off nothing: those of the one before are history.
  made.run(() => {});
  const later = new Transactions(Journal.open(memory.slice(), slots, OPTIONS));
  const none: string[] = [];
  later.effector = log(none);
  later.redo();
  t.same(none, []);
  t.throws(() => made.run(() => made.write(0, new Uint8Array(200_000))), { code: 'DEVSTATE_E_JOURNAL' });
  const { committed } = journal;
  made.keep(() => journal.put(2, new Uint8Array(9)));
  for (let i = 0; i < 2; i++)
    t.throws(() => made.run(() => made.signal(1)), { message: /slot c takes 8 bytes/ }, 'from then on');
  t.equal(journal.committed, committed);
});

t.test('a transfer: what the kernel counts, and what was counted before', async (t) => {
  const memory = new Uint8Array(128);
  const view = new DataView(memory.buffer);
  const found: [number, number][] = [];
  const transfer: Transfer = new Transfer(memory, 64, () =>
    found.push([transfer.sequence, transfer.position]),
  );
  const count = (bytes: number): void => view.setUint32(64 + 56, bytes, true);
  transfer.begin(255);
  count(10);
  t.equal(transfer.position, 10);
  transfer.settle();
  count(0x100000);
  transfer.settle();
  t.equal(transfer.position, 0x10000a);
  t.equal(transfer.sequence, 255);
  transfer.settle();
  transfer.begin(256);
  t.same(found, [
    [255, 0],
    [255, 10],
    [255, 0x10000a],
    [0, 0],
  ]);
});

t.test('an exchange: attempts and fds are one message’s', async (t) => {
  const { exchange } = Journal.create(memoryFor(), SLOTS, OPTIONS);
  exchange.attempts = 2;
  exchange.fds = [4, 5, 6];
  t.same(exchange.fds, [4, 5, 6]);
  const { sequence } = exchange.receiving;
  exchange.advance();
  t.same([exchange.attempts, exchange.fds, exchange.receiving.sequence], [0, [], sequence + 1]);
  exchange.reset();
  t.equal(exchange.receiving.sequence, sequence + 2, 'no number of the connection before');
});
