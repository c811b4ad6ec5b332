// SPDX-License-Identifier: Apache-2.0
/** SET_IRQS, every kind of data with every action on every index, and when an interrupt is delivered. */

import t from 'tap';
import { InterruptTable, type Signal } from '../../src/runtime/interrupt-table.js';
import { Errno, IrqSetFlag, PciIrq } from '../../src/wire/index.js';
import { refusal } from '../support/hex.js';

const { DATA_NONE, DATA_BOOL, DATA_EVENTFD, ACTION_MASK, ACTION_UNMASK, ACTION_TRIGGER } = IrqSetFlag;
const COUNTS = [1, 4, 8, 1, 1];
const NO_DATA = new Uint8Array(0);

class Line implements Signal {
  count = 0;
  closed = 0;
  signal(): void {
    this.count++;
  }
  close(): void {
    this.closed++;
  }
  /** Signals since the last call. */
  take(): number {
    const { count } = this;
    this.count = 0;
    return count;
  }
}

const lines = (count: number): Line[] => Array.from({ length: count }, () => new Line());

function assign(interrupts: InterruptTable, index: number, list: readonly Line[], start = 0): void {
  interrupts.set({ flags: DATA_EVENTFD | ACTION_TRIGGER, index, start, count: list.length }, NO_DATA, list);
}

function act(interrupts: InterruptTable, index: number, action: number, vector = 0): void {
  interrupts.set({ flags: DATA_NONE | action, index, start: vector, count: 1 }, NO_DATA, []);
}

t.test('every kind of data × every action × every index', async (t) => {
  for (const [index, count] of COUNTS.entries()) {
    for (const action of [ACTION_MASK, ACTION_UNMASK, ACTION_TRIGGER]) {
      const interrupts = new InterruptTable(COUNTS);
      const list = lines(count);
      assign(interrupts, index, list);
      const set = (flags: number, data = NO_DATA, given: Signal[] = []): number =>
        refusal(() => interrupts.set({ flags: flags | action, index, start: 0, count }, data, given));
      const expected = action === ACTION_TRIGGER ? 1 : 0;
      t.equal(set(DATA_NONE), 0);
      t.ok(
        list.every((line) => line.take() === expected),
        `none, ${action}, index ${index}`,
      );
      act(interrupts, index, ACTION_UNMASK);
      for (let vector = 1; vector < count; vector++) act(interrupts, index, ACTION_UNMASK, vector);
      t.equal(set(DATA_BOOL, new Uint8Array(count)), 0);
      t.ok(
        list.every((line) => line.take() === 0),
        'bool: none of them',
      );
      t.equal(set(DATA_BOOL, new Uint8Array(count).fill(1)), 0);
      t.ok(
        list.every((line) => line.take() === expected),
        'bool: all of them',
      );
      t.equal(set(DATA_BOOL, new Uint8Array(count - 1)), Errno.EINVAL, 'bool: too short');
      t.equal(set(DATA_EVENTFD), action === ACTION_TRIGGER ? 0 : Errno.EINVAL, 'eventfd without fds');
      t.equal(set(DATA_EVENTFD, NO_DATA, lines(count + 1)), Errno.EINVAL, 'eventfd with too many');
      t.equal(set(DATA_NONE, NO_DATA, lines(count)), Errno.EINVAL, 'fds without eventfd');
    }
  }
});

t.test('bool picks vectors, wherever it starts', async (t) => {
  const interrupts = new InterruptTable(COUNTS);
  const list = lines(8);
  assign(interrupts, PciIrq.MSIX, list);
  const request = { flags: DATA_BOOL | ACTION_TRIGGER, index: PciIrq.MSIX, start: 2, count: 4 };
  interrupts.set(request, Uint8Array.of(1, 0, 0, 255), []);
  t.strictSame(
    list.map((line) => line.count),
    [0, 0, 1, 0, 0, 1, 0, 0],
  );
});

t.test('what is refused', async (t) => {
  const interrupts = new InterruptTable(COUNTS);
  const msix = { index: PciIrq.MSIX, start: 0, count: 1 };
  const wrong: [string, Parameters<InterruptTable['set']>[0]][] = [
    ['no data', { ...msix, flags: ACTION_TRIGGER }],
    ['no action', { ...msix, flags: DATA_NONE }],
    ['two kinds of data', { ...msix, flags: DATA_NONE | DATA_BOOL | ACTION_TRIGGER }],
    ['two actions', { ...msix, flags: DATA_NONE | ACTION_MASK | ACTION_UNMASK }],
    ['unknown flags', { ...msix, flags: DATA_NONE | ACTION_TRIGGER | 0x40 }],
    ['an index that does not exist', { ...msix, flags: DATA_NONE | ACTION_TRIGGER, index: 5 }],
    ['a vector that does not exist', { ...msix, flags: DATA_NONE | ACTION_TRIGGER, start: 8 }],
    ['vectors past the end', { ...msix, flags: DATA_NONE | ACTION_TRIGGER, start: 4, count: 5 }],
    [
      'numbers that would overflow',
      { ...msix, flags: DATA_NONE | ACTION_TRIGGER, start: 0xffffffff, count: 2 },
    ],
    ['no vectors to mask', { ...msix, flags: DATA_NONE | ACTION_MASK, count: 0 }],
    ['no vectors from 1', { ...msix, flags: DATA_NONE | ACTION_TRIGGER, start: 1, count: 0 }],
    ['no eventfds for no vectors', { ...msix, flags: DATA_EVENTFD | ACTION_TRIGGER, count: 0 }],
  ];
  for (const [what, request] of wrong)
    t.equal(
      refusal(() => interrupts.set(request, NO_DATA, [])),
      Errno.EINVAL,
      what,
    );
});

t.test('assigned in chunks, replaced, taken away, disabled', async (t) => {
  const interrupts = new InterruptTable(COUNTS);
  const list = lines(8);
  t.equal(interrupts.msixEnabled, false);
  assign(interrupts, PciIrq.MSIX, list.slice(0, 3), 0);
  assign(interrupts, PciIrq.MSIX, list.slice(3, 8), 3);
  t.equal(interrupts.msixEnabled, true);
  for (let vector = 0; vector < 8; vector++) interrupts.triggerMsix(vector);
  t.ok(list.every((line) => line.take() === 1));
  const other = new Line();
  assign(interrupts, PciIrq.MSIX, [other], 4);
  t.equal(list[4]?.closed, 1, 'the one before is closed');
  interrupts.triggerMsix(4);
  t.equal(other.take(), 1);
  interrupts.set(
    { flags: DATA_EVENTFD | ACTION_TRIGGER, index: PciIrq.MSIX, start: 4, count: 2 },
    NO_DATA,
    [],
  );
  t.equal(other.closed, 1);
  t.equal(list[5]?.closed, 1);
  interrupts.triggerMsix(4);
  t.strictSame(
    interrupts.save(),
    { pendingMsix: [4], pendingMsi: [] },
    'without an eventfd it stays pending',
  );
  interrupts.set({ flags: DATA_NONE | ACTION_TRIGGER, index: PciIrq.MSIX, start: 0, count: 0 }, NO_DATA, []);
  t.equal(interrupts.msixEnabled, false);
  t.strictSame(
    [...list, other].map((line) => line.closed),
    new Array(9).fill(1),
    'each closed once',
  );
  interrupts.triggerMsix(99);
  interrupts.triggerMsi(0);
  t.strictSame(
    interrupts.save(),
    { pendingMsix: [4], pendingMsi: [0] },
    'a vector that is none raises nothing',
  );
});

t.test('a pending interrupt is delivered once, when it can be', async (t) => {
  const interrupts = new InterruptTable(COUNTS);
  interrupts.triggerMsix(2);
  interrupts.triggerMsix(2);
  const list = lines(8);
  assign(interrupts, PciIrq.MSIX, list);
  t.equal(list[2]!.take(), 1, 'on assignment');
  act(interrupts, PciIrq.MSIX, ACTION_MASK, 2);
  interrupts.triggerMsix(2);
  t.equal(list[2]!.take(), 0, 'not while masked');
  act(interrupts, PciIrq.MSIX, ACTION_UNMASK, 2);
  t.equal(list[2]!.take(), 1, 'on unmask');
  act(interrupts, PciIrq.MSIX, ACTION_UNMASK, 2);
  t.equal(list[2]!.take(), 0, 'once');
  interrupts.hold();
  interrupts.triggerMsix(2);
  interrupts.triggerMsi(1);
  t.equal(list[2]!.take(), 0, 'not while held');
  t.strictSame(interrupts.save(), { pendingMsix: [2], pendingMsi: [1] });
  interrupts.release();
  t.equal(list[2]!.take(), 1, 'on release');
  interrupts.triggerMsix(2);
  t.equal(list[2]!.take(), 1, 'and then as always');
});

t.test('INTx is a level', async (t) => {
  const interrupts = new InterruptTable(COUNTS);
  const line = new Line();
  assign(interrupts, PciIrq.INTX, [line]);
  interrupts.setIntx(true);
  t.equal(line.take(), 1, 'asserted');
  t.equal(interrupts.intxAsserted, true);
  interrupts.setIntx(false);
  interrupts.setIntx(true);
  t.equal(line.take(), 0, 'masked by itself until it is unmasked');
  act(interrupts, PciIrq.INTX, ACTION_UNMASK);
  t.equal(line.take(), 1, 'still asserted: again');
  act(interrupts, PciIrq.INTX, ACTION_UNMASK);
  t.equal(line.take(), 1, 'and again');
  interrupts.setIntx(false);
  act(interrupts, PciIrq.INTX, ACTION_UNMASK);
  t.equal(line.take(), 0, 'not after it fell');
  act(interrupts, PciIrq.INTX, ACTION_MASK);
  interrupts.setIntx(true);
  t.equal(line.take(), 0);
  interrupts.setIntx(false);
  act(interrupts, PciIrq.INTX, ACTION_UNMASK);
  t.equal(line.take(), 0, 'rose and fell while masked: nothing to see');
  interrupts.setIntx(true);
  t.equal(line.take(), 1);
  const other = new Line();
  assign(interrupts, PciIrq.INTX, [other]);
  t.equal(other.take(), 1, 'a new eventfd sees a line that is up');
  t.equal(line.closed, 1);
  interrupts.disconnect();
  t.equal(other.closed, 1);
  const last = new Line();
  assign(interrupts, PciIrq.INTX, [last]);
  t.equal(last.take(), 1, 'also after a disconnect');
});

t.test('INTx while the device is held', async (t) => {
  const interrupts = new InterruptTable(COUNTS);
  const line = new Line();
  assign(interrupts, PciIrq.INTX, [line]);
  interrupts.hold();
  interrupts.setIntx(true);
  t.equal(line.take(), 0);
  interrupts.release();
  t.equal(line.take(), 1);
  act(interrupts, PciIrq.INTX, ACTION_UNMASK);
  line.take();
  interrupts.setIntx(false);
  interrupts.hold();
  interrupts.setIntx(true);
  interrupts.setIntx(false);
  interrupts.release();
  act(interrupts, PciIrq.INTX, ACTION_UNMASK);
  t.equal(line.take(), 0, 'rose and fell meanwhile');
});

t.test('INTx as an edge', async (t) => {
  const interrupts = new InterruptTable(COUNTS, { edgeIntx: true });
  const line = new Line();
  t.equal(interrupts.intxPending, false);
  interrupts.triggerIntx();
  t.equal(interrupts.intxPending, true);
  assign(interrupts, PciIrq.INTX, [line]);
  t.equal(line.take(), 1, 'from before there was an eventfd');
  t.equal(interrupts.intxPending, false);
  interrupts.triggerIntx();
  interrupts.triggerIntx();
  t.equal(line.take(), 2, 'each time, without being unmasked');
  act(interrupts, PciIrq.INTX, ACTION_UNMASK);
  t.equal(line.take(), 0, 'and not again');
  act(interrupts, PciIrq.INTX, ACTION_MASK);
  interrupts.triggerIntx();
  t.equal(line.take(), 0);
  act(interrupts, PciIrq.INTX, ACTION_UNMASK);
  t.equal(line.take(), 1, 'kept while masked');
  interrupts.hold();
  interrupts.triggerIntx();
  t.equal(line.take(), 0);
  interrupts.release();
  t.equal(line.take(), 1);
  t.equal(interrupts.intxAsserted, false, 'it is no level');
});

t.test('reset forgets what is pending and keeps the eventfds', async (t) => {
  const interrupts = new InterruptTable(COUNTS);
  const line = new Line();
  interrupts.hold();
  assign(interrupts, PciIrq.MSIX, [line]);
  interrupts.triggerMsix(0);
  interrupts.setIntx(true);
  interrupts.reset();
  interrupts.release();
  t.equal(line.take(), 0);
  t.equal(interrupts.intxAsserted, false);
  interrupts.triggerMsix(0);
  t.equal(line.take(), 1);
});

t.test('saved and loaded', async (t) => {
  const source = new InterruptTable(COUNTS);
  for (const vector of [1, 3, 7]) source.triggerMsix(vector);
  source.triggerMsi(2);
  const target = new InterruptTable(COUNTS);
  target.triggerMsix(0);
  target.load(source.save());
  t.strictSame(target.save(), { pendingMsix: [1, 3, 7], pendingMsi: [2] });
  for (const vector of [8, -1, 1.5, Number.NaN, 2 ** 40]) {
    t.equal(
      refusal(() => target.load({ pendingMsix: [vector], pendingMsi: [] })),
      Errno.EINVAL,
      `vector ${vector}`,
    );
  }
  const without = new InterruptTable([1, 0, 0]);
  t.equal(
    refusal(() => without.load({ pendingMsix: [0], pendingMsi: [] })),
    Errno.EINVAL,
    'no MSI-X at all',
  );
  without.load({ pendingMsix: [], pendingMsi: [] });
  t.strictSame(without.save(), { pendingMsix: [], pendingMsi: [] });
});
