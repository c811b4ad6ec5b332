// SPDX-License-Identifier: Apache-2.0
/**
 * Devices of the kernel's VFIO move from process to process while they run: `edu`, opened by its group and in a container,
 * or, with the argument `iommufd`, by its own file.
 */
import assert from 'node:assert/strict';
import { readdirSync, readlinkSync } from 'node:fs';
import { askStatus, askToGive, Cdev, Group, Iommufd, VfioAssignment } from '../../../src/vfio/index.js';
import { makeMtty } from './mtty.js';
import { type OperatorProcess, start } from './operators.js';
import { check, finish, remark } from './report.js';

const EDU = '/sys/bus/pci/devices/0000:00:03.0';
const GROUP = readlinkSync(`${EDU}/iommu_group`).split('/').at(-1)!;
const IOMMUFD = process.argv.includes('iommufd');
const lists = IOMMUFD ? { cdevs: readdirSync(`${EDU}/vfio-dev`) } : { groups: [GROUP] };
const TIMEOUT_MS = 30_000;
const MEMORY = 0x40000;
const TRANSFERS = IOMMUFD ? 20 : 100;
/** Even, so that the first has the device in the end. */
const CONTESTED_MOVES = 10;

/** What `operator.ts` tells of the process. */
interface Resources {
  readonly fds: number;
  readonly locked: number;
  readonly pinned: number;
  readonly mappingsLeft?: number;
}

/** Opens what the operators have opened; it must be closed when it works. */
function openOnceMore(): void {
  if (!IOMMUFD) {
    Group.open(GROUP).close();
    return;
  }
  const cdev = Cdev.open(lists.cdevs?.[0] ?? '');
  const iommufd = Iommufd.open();
  try {
    cdev.bind(iommufd);
  } finally {
    cdev.close();
    iommufd.close();
  }
}

/** The operator has the device running, and the other listens without one. */
async function setUp(source: OperatorProcess, destination: OperatorProcess): Promise<void> {
  await destination.ask('reopen', {});
  await source.ask('reopen', lists);
  await source.ask('setUp');
}

const transfer = (from: OperatorProcess, to: OperatorProcess) => askToGive(from.path, to.path, TIMEOUT_MS);

/** Registers as the one before had them, and the interrupt that was pending then; DMA by the mapping that was made there. */
async function requireGoesOn(operator: OperatorProcess, before: unknown, seed: number): Promise<void> {
  assert.deepEqual(await operator.ask('registers'), before, 'nothing has reset the device');
  await operator.ask('interrupts');
  await operator.ask('acknowledge', 0x20);
  await operator.ask('dma', seed);
  assert.equal(await operator.ask('unmap'), MEMORY);
  await operator.ask('map');
  await operator.ask('dma', seed + 1);
}

const [first, second, third] = start(3);

await check('the destination goes on where the source was, and the source ends', async () => {
  await setUp(first, second);
  await first.ask('dma', 1);
  await first.ask('mark', 0x12345678);
  const before = await first.ask<{ command: number }>('registers');
  assert.equal(before.command, 6, 'the device may use memory');
  const report = await transfer(first, second);
  await first.end();
  remark(`transfer: ${JSON.stringify(report)}`);
  const { rebinding } = await second.ask<{ rebinding: { explanation: string } }>('inherited');
  remark(`DMA mappings: ${rebinding.explanation}`);
  assert.throws(openOnceMore, { code: 'DEVSTATE_E_VFIO_BUSY' });
  await requireGoesOn(second, before, 2);
});

await check('a reset would have been noticed', async () => {
  await second.ask('reopen', lists);
  const { command } = await second.ask<{ command: number }>('registers');
  assert.equal(command & 4, 0, 'a device that is opened anew may not use memory');
});

await check(
  'a DMA that is under way ends, and its interrupt comes, where the device is by then',
  async () => {
    await setUp(second, third);
    await second.ask('beginStore', 4);
    await transfer(second, third);
    await third.ask('finishStore', 4);
  },
);

await check('a destination that dies before it commits: the source continues', async () => {
  const [dying] = start(1);
  await dying.ask('receiveAndDie');
  await third.ask('mark', 77);
  const before = await third.ask('registers');
  await assert.rejects(transfer(third, dying), /phase adopt: .*; the source continues/);
  assert.equal(await dying.exited, 'SIGKILL');
  await requireGoesOn(third, before, 5);
});

await check('a device that has been touched on the way is refused: the source continues', async () => {
  const refusal = await third.ask<{ code: string; message: string }>('giveChanged', second.path);
  assert.equal(refusal.code, 'DEVSTATE_E_VFIO_STATE');
  assert.match(refusal.message, /config space at 0x4 is 0[67]0\d, and was 0000; somebody has reset it/);
  await third.ask('dma', 9);
});

await check('an operator that cannot stop: the source continues', async () => {
  await third.ask('dieIn', 'throw');
  await assert.rejects(
    transfer(third, second),
    /phase freeze: the operator cannot stop; the source continues/,
  );
  await third.ask('dma', 7);
  assert.equal((await askStatus(second.path)).devices.length, 0);
});

await check('a source that dies before all has gone over: everything is released', async () => {
  await third.ask('dieIn', 'suspend');
  await assert.rejects(transfer(third, second));
  assert.equal(await third.exited, 'SIGKILL');
  openOnceMore();
  assert.equal((await askStatus(second.path)).devices.length, 0);
});

const [fourth, fifth] = start(2);

await check('a source that dies once all has gone over: the destination completes', async () => {
  await setUp(second, fourth);
  await second.ask('mark', 78);
  const before = await second.ask('registers');
  await assert.rejects(second.ask('giveAndDie', fourth.path), /the operator ended/);
  await fourth.says(/adopted/);
  await requireGoesOn(fourth, before, 8);
});

const ends = [fourth, fifth] as const;

/** Whose turn it is after so many moves, and who gives to it. */
const turn = (moves: number) => [ends[(moves + 1) % 2]!, ends[moves % 2]!] as const;

/** What both have when the connections of the last transfer are closed, which takes some turns of their loops. */
async function settledResources(): Promise<Resources[]> {
  const resources = () => Promise.all(ends.map((end) => end.ask<Resources>('resources')));
  for (let last = await resources(); ; ) {
    const next = await resources();
    if (JSON.stringify(next) === JSON.stringify(last)) return next;
    last = next;
  }
}

interface Competition {
  readonly done: number;
  readonly refused: number;
  readonly together: number;
}

await check('two processes that have the files never operate the device both', async () => {
  await setUp(fourth, fifth);
  for (const end of ends) await end.ask('compete');
  for (let moves = 1; moves <= CONTESTED_MOVES; moves++) {
    const [from, to] = turn(moves);
    const { done } = await to.ask<Competition>('competition');
    await transfer(from, to);
    // Each has its turn for some time.
    while ((await to.ask<Competition>('competition')).done < done + 100);
  }
  const counts = await Promise.all(ends.map((end) => end.ask<Competition>('stopCompeting')));
  remark(JSON.stringify(counts));
  for (const { together } of counts) assert.equal(together, 0);
  assert.ok(
    counts.some(({ refused }) => refused > 0),
    'they did try when it was not their turn',
  );
});

await check(`${TRANSFERS} transfers back and forth leak nothing`, async () => {
  // A first one to and fro, for what is made once.
  await transfer(ends[0], ends[1]);
  await transfer(ends[1], ends[0]);
  const before = await settledResources();
  const began = performance.now();
  for (let moves = 1; moves <= TRANSFERS; moves++) await transfer(...turn(moves));
  remark(`${((performance.now() - began) / TRANSFERS).toFixed(0)} ms each`);
  assert.deepEqual(await settledResources(), before);
  remark(JSON.stringify(before));
  await ends[0].ask('dma', 9);
  assert.equal(await ends[0].ask('unmap'), MEMORY, 'one mapping, not a hundred');
  await Promise.all(ends.map((end) => end.end()));
  openOnceMore();
});

if (IOMMUFD) {
  await check(
    'a container with a mediated device keeps its mappings: a move is refused before it begins',
    () => {
      const { inGroup } = makeMtty('0b6a4a3e-52f2-4a3c-9a6f-7d6a1f7e1c01', 1);
      const assignment = VfioAssignment.openGroups([inGroup.split(':')[0] ?? '']);
      try {
        assignment.requireMovable();
        const memory = assignment.addMemory('ram', MEMORY);
        assignment.mapDma({ iova: 0, size: MEMORY, memory, offset: 0, read: true, write: true });
        assert.throws(() => assignment.requireMovable(), {
          code: 'DEVSTATE_E_VFIO_REBIND',
          message: /a mediated device is in it/,
        });
        assert.equal(assignment.unmapDma(0, MEMORY), MEMORY);
        assignment.requireMovable();
      } finally {
        assignment.close();
      }
    },
  );
}

finish();
