// SPDX-License-Identifier: Apache-2.0
/** What is birch's own between doorbell and completion: turns, commands that wait to be started, and their end. */

import { join } from 'node:path';
import t, { type Test } from 'tap';
import { COMMAND_SIZE } from '../../../../src/devices/nvme/birch/layout.js';
import { Status } from '../../../../src/devices/nvme/spec/index.js';
import { type Completion, createRig, DATA, imageFolder, type MemoryKind, type Rig } from '../rig.js';

const FLUSH = 0;
const READ = 2;
/** Commands carried out at a time. */
const STARTED = 32;
const SUBMITTED = 60;

/** A controller with 60 flushes in queue 1 that the disk does not answer before `open` is called. */
async function stalled(t: Test, kind: MemoryKind): Promise<{ rig: Rig; open: () => void }> {
  const rig = createRig({ vendor: 'birch', kind, path: join(imageFolder(t), 'disk') });
  t.teardown(() => rig.image.close());
  rig.useMsix(5);
  await rig.enable();
  await rig.createPair(1, 128);
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  let flushes = 0;
  const flush = rig.image.flush.bind(rig.image);
  rig.image.flush = () => {
    flushes++;
    return opened.then(flush);
  };
  const size = () => rig.device.formats[0]!.estimate();
  const before = size();
  for (let i = 0; i < SUBMITTED; i++) rig.queue(1, { opcode: FLUSH, nsid: 1, cid: i });
  rig.submit(1);
  await rig.until('all to be fetched', () => size() === before + SUBMITTED * COMMAND_SIZE);
  t.equal(flushes, STARTED, 'as many are started as are useful');
  return { rig, open };
}

function completions(rig: Rig): Completion[] {
  const found: Completion[] = [];
  for (let one = rig.poll(1); one !== undefined; one = rig.poll(1)) found.push(one);
  return found;
}

for (const kind of ['mapped', 'remote'] satisfies MemoryKind[]) {
  t.test(`commands that were fetched and not started, ${kind} memory`, async (t) => {
    t.test('are started as others end', async (t) => {
      const { rig, open } = await stalled(t, kind);
      t.same(completions(rig), []);
      open();
      const found: Completion[] = [];
      await rig.until('all', () => found.push(...completions(rig)) >= 0 && found.length === SUBMITTED);
      t.same(
        found.map(({ cid }) => cid).toSorted((a, b) => a - b),
        Array.from({ length: SUBMITTED }, (_, i) => i),
      );
    });

    t.test('are aborted when their queue is deleted; the others are waited for', async (t) => {
      const { rig, open } = await stalled(t, kind);
      const cid = rig.queue(0, { opcode: 0, cdw10: 1 });
      rig.queue(0, { opcode: 0, cdw10: 1 });
      rig.queue(0, { opcode: 4, cdw10: 1 });
      rig.submit(0);
      const aborted: Completion[] = [];
      await rig.until(
        'the aborted ones',
        () => aborted.push(...completions(rig)) >= 0 && aborted.length === SUBMITTED - STARTED,
      );
      t.ok(aborted.every(({ status }) => status === Status.ABORTED_SQ_DELETION));
      t.match(
        [await rig.completion(0), await rig.completion(0)].map(({ status }) => status),
        [Status.INVALID_QUEUE_IDENTIFIER, Status.INVALID_QUEUE_DELETION],
        'it is being deleted, and still there',
      );
      t.equal(rig.poll(0), undefined);
      open();
      t.match(await rig.completion(0), { cid, status: 0 });
      t.equal(completions(rig).filter(({ status }) => status === 0).length, STARTED);
      t.match(await rig.admin({ opcode: 4, cdw10: 1 }), { status: 0 });
      await rig.createPair(1, 16);
      t.match(await rig.run(1, { opcode: READ, nsid: 1, prp1: DATA }), { status: 0 });
    });

    t.test('are carried out before a shutdown, though it is quiesced meanwhile', async (t) => {
      const { rig, open } = await stalled(t, kind);
      rig.write(0x14, 0x464001);
      t.equal(rig.read(0x1c), 5, 'under way');
      const quiesced = rig.device.quiesce();
      open();
      await quiesced;
      t.equal(rig.read(0x1c), 9, 'complete');
      t.equal(completions(rig).length, SUBMITTED);
    });

    t.test('are dropped by a reset; the others end in silence', async (t) => {
      const { rig, open } = await stalled(t, kind);
      rig.write(0x14, 0x460000);
      t.equal(rig.read(0x1c), 1);
      open();
      await rig.until('the reset', () => rig.read(0x1c) === 0);
      t.same(completions(rig), []);
      await rig.enable();
      await rig.createPair(1, 16);
      t.match(await rig.run(1, { opcode: READ, nsid: 1, prp1: DATA }), { status: 0 });
    });
  });
}

t.test('queues take turns', async (t) => {
  const rig = createRig({ vendor: 'birch', path: join(imageFolder(t), 'disk') });
  t.teardown(() => rig.image.close());
  rig.useMsix(5);
  await rig.enable();
  await rig.createPair(1, 64);
  await rig.createPair(2, 64);
  // Queue 3 is completed where queue 1 is, so that the order shows.
  const { cq } = rig.ring(2);
  const sq = cq + 0x1_0000;
  await rig.admin({ opcode: 1, prp1: sq, cdw10: (63 << 16) | 3, cdw11: 1 | (1 << 16) });
  rig.guest.rings.set(3, { ...rig.ring(2), sq });
  await rig.device.quiesce();
  for (let i = 0; i < 20; i++) {
    for (const qid of [1, 3]) rig.queue(qid, { opcode: READ, nsid: 1, prp1: DATA });
  }
  rig.submit(1);
  rig.submit(3);
  await rig.device.resume();
  const order: number[] = [];
  for (let i = 0; i < 40; i++) order.push((await rig.completion(1)).sqid);
  const turns = (sqid: number, count: number) => new Array<number>(count).fill(sqid);
  t.same(order, [
    ...turns(1, 8),
    ...turns(3, 8),
    ...turns(1, 8),
    ...turns(3, 8),
    ...turns(1, 4),
    ...turns(3, 4),
  ]);
});

t.test('event requests wait without holding up anything', async (t) => {
  const rig = createRig({ vendor: 'birch', path: join(imageFolder(t), 'disk') });
  t.teardown(() => rig.image.close());
  rig.useMsix(5);
  // One completion at a time: four requests must not take the room of other commands.
  rig.write(0x24, (1 << 16) | 31);
  rig.write(0x28, 0x10_0000, 8);
  rig.write(0x30, 0x10_4000, 8);
  rig.write(0x14, 0x460001);
  const ring = { sq: 0x10_0000, cq: 0x10_4000, sqSize: 32, cqSize: 2, tail: 0, head: 0, phase: 1 };
  rig.guest.rings.set(0, ring);
  const cids = [0, 1, 2, 3].map(() => rig.queue(0, { opcode: 0x0c }));
  rig.submit(0);
  t.match(await rig.admin({ opcode: 0x0a, cdw10: 7 }), { status: 0, result: 0x30003 });
  t.match(await rig.admin({ opcode: 0x0c }), { status: Status.ASYNC_EVENT_LIMIT_EXCEEDED });
  // Both find the queue full but for one entry: the second completion is due until the guest makes room.
  rig.queue(0, { opcode: 8, cdw10: cids[2]! << 16 });
  rig.submit(0);
  t.match(await rig.completion(0), { cid: cids[2], status: Status.ABORT_REQUESTED });
  t.match(await rig.completion(0), { status: 0, result: 0 }, 'the abort itself');
});
