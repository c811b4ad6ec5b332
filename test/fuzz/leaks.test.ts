// SPDX-License-Identifier: Apache-2.0
/** What many cycles leave behind: file descriptors and mappings are counted before and after. */

import t from 'tap';
import { Client, RegionMigrationClient } from '../../src/client/index.js';
import { closeAll } from '../../src/transport/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { eventfd, memfd } from '../support/memory.js';
import { resources, serveScratch, until } from '../support/served.js';

/** What is open when everything that was closed has gone. */
async function settled(expected: ReturnType<typeof resources>): Promise<ReturnType<typeof resources>> {
  for (let turn = 0; turn < 1000; turn++) {
    const now = resources();
    if (now.fds === expected.fds && now.maps === expected.maps) return now;
    await new Promise(setImmediate);
  }
  return resources();
}

t.test('10,000 maps and unmaps', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const fd = memfd(0x10000);
  t.teardown(() => fd.close());
  const before = resources();
  const range = { offset: 0, address: 0x10000, size: 0x10000 };
  for (let i = 0; i < 100; i++) {
    const waiting: Promise<void>[] = [];
    for (let j = 0; j < 100; j++) {
      const flags = 3 | [0, 4, 8][j % 3]!;
      const address = range.address * (1 + j);
      waiting.push(vmm.dmaMap({ ...range, address, flags }, fd));
      // A refused one must not leave its mapping or its fd either.
      if (j % 10 === 0) waiting.push(vmm.dmaMap({ ...range, address, flags }, fd).catch(() => {}));
    }
    for (let j = 0; j < 99; j++)
      waiting.push(vmm.dmaUnmap({ flags: 0, address: range.address * (1 + j), size: range.size }));
    waiting.push(vmm.dmaUnmap({ flags: 2, address: 0, size: 0 }));
    await Promise.all(waiting);
  }
  t.strictSame(await settled(before), before);
});

t.test('1,000 connections of VMMs and managers, with all that they bring', async (t) => {
  const served = serveScratch(t);
  const fds = [memfd(0x1000), eventfd(), eventfd()];
  t.teardown(() => closeAll(fds));
  const cycle = async (i: number): Promise<void> => {
    const vmm = await Client.connect(served.path, { capabilities: { twinSocket: i % 2 === 0 } });
    await vmm.dmaMap({ flags: 3, offset: 0, address: 0, size: 0x1000 }, fds[0]);
    await vmm.assignEventfds(2, fds.slice(1));
    if (i % 10 === 0) {
      const manager = await served.manager();
      await manager.setState(MigrationState.STOP_COPY);
      await manager.readData(new Uint8Array(100));
      manager.close();
    }
    vmm.close();
    await vmm.closed();
  };
  await cycle(0);
  await until(() => served.log.filter((line) => line.includes('has left')).length === 1);
  const before = resources();
  for (let i = 1; i <= 1000; i++) await cycle(i);
  await until(() => served.log.filter((line) => line.includes('has left')).length === 1001);
  t.strictSame(await settled(before), before);
});

t.test('500 clients of the migration region, that map it and leave in the middle', async (t) => {
  const served = serveScratch(t, { migration: 'v1', migrationRegion: { mapped: true, dataSize: 4096 } });
  const { STOP_COPY, RESUMING, PRE_COPY } = MigrationState;
  const cycle = async (i: number): Promise<void> => {
    const client = await Client.connect(i % 2 === 0 ? served.path : served.migrationPath);
    const region = await RegionMigrationClient.open(client);
    if (region?.isMapped !== true) throw new Error('not mapped');
    await region.setState([STOP_COPY, RESUMING, PRE_COPY][i % 3]!);
    if (i % 3 === 1) await region.writeData(new Uint8Array(10)).catch(() => {});
    else await region.readData(new Uint8Array(100));
    // What is stopped stays so, for a manager that comes back.
    await region.setState(MigrationState.RUNNING).catch(() => client.reset());
    region.close();
    await client.closed();
  };
  await cycle(0);
  await until(() => served.log.filter((line) => line.includes('has left')).length === 1);
  const before = resources();
  for (let i = 1; i <= 500; i++) await cycle(i);
  await until(() => served.log.filter((line) => line.includes('has left')).length === 251);
  t.strictSame(await settled(before), before);
});

t.test('1,000 loads given up', async (t) => {
  const served = serveScratch(t);
  const manager = await served.manager();
  const before = resources();
  for (let i = 0; i < 1000; i++) {
    await manager.setState(MigrationState.RESUMING);
    await manager.reset();
  }
  t.strictSame(await settled(before), before);
  t.equal(await manager.state(), MigrationState.RUNNING);
});
