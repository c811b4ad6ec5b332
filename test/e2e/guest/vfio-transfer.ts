// SPDX-License-Identifier: Apache-2.0
/**
 * Devices of the kernel's VFIO move from process to process while they run: `edu`, opened by its group and in a container,
 * or, with the argument `iommufd`, by its own file.
 */
import assert from 'node:assert/strict';
import { readdirSync, readlinkSync } from 'node:fs';
import { askStatus, askToGive, Cdev, Group, Iommufd } from '../../../src/vfio/index.js';
import { type OperatorProcess, start } from './operators.js';
import { check, finish, remark } from './report.js';

const EDU = '/sys/bus/pci/devices/0000:00:03.0';
const GROUP = readlinkSync(`${EDU}/iommu_group`).split('/').at(-1)!;
const IOMMUFD = process.argv.includes('iommufd');
const lists = IOMMUFD ? { cdevs: readdirSync(`${EDU}/vfio-dev`) } : { groups: [GROUP] };
const TIMEOUT_MS = 30_000;
const MEMORY = 0x40000;
const TRANSFERS = 100;

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

/** A source that has the device running, and a destination that listens. */
async function pair(): Promise<[OperatorProcess, OperatorProcess]> {
  const [source, destination] = start(2);
  await Promise.all([
    source.ask('listen', lists).then(() => source.ask('setUp')),
    destination.ask('listen', {}),
  ]);
  return [source, destination];
}

const transfer = (from: OperatorProcess, to: OperatorProcess) => askToGive(from.path, to.path, TIMEOUT_MS);

await check('the destination goes on where the source was, and the source ends', async () => {
  const [source, destination] = await pair();
  await source.ask('dma', 1);
  await source.ask('mark', 0x12345678);
  const before = await source.ask<{ command: number }>('registers');
  assert.equal(before.command, 6, 'the device may use memory');
  const report = await transfer(source, destination);
  await source.end();
  remark(`transfer: ${JSON.stringify(report)}`);
  const { rebinding } = await destination.ask<{ rebinding: { moved: boolean; explanation: string } }>(
    'inherited',
  );
  remark(`DMA mappings: ${rebinding.explanation}`);
  assert.deepEqual(await destination.ask('registers'), before, 'nothing has reset the device');
  await destination.ask('interrupts');
  await destination.ask('acknowledge', 0x20);
  await destination.ask('dma', 2);
  assert.throws(openOnceMore, { code: 'DEVSTATE_E_VFIO_BUSY' });
  assert.equal(await destination.ask('unmap'), MEMORY);
  await destination.ask('map');
  await destination.ask('dma', 3);
  await destination.end();
  // What the registers are when nobody has the device and it is opened anew: the test above could have failed.
  openOnceMore();
});

await check(
  'a DMA that is under way ends, and its interrupt comes, where the device is by then',
  async () => {
    const [source, destination] = await pair();
    await source.ask('beginStore', 4);
    await transfer(source, destination);
    await destination.ask('finishStore', 4);
    await source.end();

    await check('a reset would be noticed', async () => {
      await destination.ask('reopen', lists);
      const { command } = await destination.ask<{ command: number }>('registers');
      assert.equal(command & 4, 0, 'a device that is opened anew may not use memory');
    });
    await destination.end();
  },
);

await check('a destination that dies before it commits: the source goes on', async () => {
  const [source, destination] = start(2);
  await Promise.all([
    source.ask('listen', lists).then(() => source.ask('setUp')),
    destination.ask('receiveAndDie'),
  ]);
  await source.ask('mark', 77);
  await assert.rejects(transfer(source, destination), /phase adopt: .*; the source goes on/);
  assert.equal(await destination.exited, 'SIGKILL');
  await source.ask('interrupts');
  await source.ask('acknowledge', 0x20);
  await source.ask('dma', 5);
  assert.equal(await source.ask('unmap'), MEMORY);
  await source.ask('map');
  await source.ask('dma', 6);

  await check('an operator that cannot stop: the source goes on', async () => {
    await source.ask('dieIn', 'throw');
    await assert.rejects(transfer(source, destination), /cannot connect/);
    const [other] = start(1);
    await other.ask('listen', {});
    await assert.rejects(
      transfer(source, other),
      /phase freeze: the operator cannot stop; the source goes on/,
    );
    await source.ask('dma', 7);
    assert.equal((await askStatus(other.path)).devices.length, 0);

    await check('a source that dies before all has gone over: everything is released', async () => {
      await source.ask('dieIn', 'suspend');
      await assert.rejects(transfer(source, other));
      assert.equal(await source.exited, 'SIGKILL');
      openOnceMore();
      assert.equal((await askStatus(other.path)).devices.length, 0);
    });
    await other.end();
  });
});

await check('a source that dies once all has gone over: the destination completes', async () => {
  const [source, destination] = await pair();
  await source.ask('mark', 78);
  const before = await source.ask('registers');
  await assert.rejects(source.ask('giveAndDie', destination.path), /the operator ended/);
  await destination.says(/adopted/);
  assert.deepEqual(await destination.ask('registers'), before);
  await destination.ask('interrupts');
  await destination.ask('acknowledge', 0x20);
  await destination.ask('dma', 8);
  assert.equal(await destination.ask('unmap'), MEMORY);
  await destination.end();
  openOnceMore();
});

await check('two processes that have the files never operate the device both', async () => {
  const ends = await pair();
  const trying = { ms: 6000 };
  const outcomes = Promise.all(
    ends.map((end) => end.ask<{ done: number; refused: number; together: number }>('compete', trying)),
  );
  let moves = 0;
  let over = false;
  outcomes.finally(() => {
    over = true;
  });
  for (; !over; moves++) await transfer(ends[moves % 2]!, ends[(moves + 1) % 2]!);
  for (const { done, together } of await outcomes) {
    assert.equal(together, 0);
    assert.ok(done > 0);
  }
  assert.ok(moves > 2);
  remark(`${moves} moves meanwhile: ${JSON.stringify(await outcomes)}`);

  await check(`${TRANSFERS} transfers back and forth leak nothing`, async () => {
    if (moves % 2 === 1) await transfer(ends[1], ends[0]);
    // A first one to and fro, for what is made once.
    await transfer(ends[0], ends[1]);
    await transfer(ends[1], ends[0]);
    const resources = () => Promise.all(ends.map((end) => end.ask<Resources>('resources')));
    const before = await resources();
    const began = performance.now();
    for (let round = 0; round < TRANSFERS; round++) await transfer(ends[round % 2]!, ends[(round + 1) % 2]!);
    remark(`${((performance.now() - began) / TRANSFERS).toFixed(0)} ms each`);
    assert.deepEqual(await resources(), before);
    remark(JSON.stringify(before));
    await ends[0].ask('dma', 9);
    assert.equal(await ends[0].ask('unmap'), MEMORY, 'one mapping, not a hundred');
  });
  await Promise.all(ends.map((end) => end.end()));
  openOnceMore();
});

finish();
