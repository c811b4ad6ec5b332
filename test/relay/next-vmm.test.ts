// SPDX-License-Identifier: Apache-2.0
/**
 * One VMM follows another at a relay whose server knows of one VMM only: what reaches the server, what changes hands, and
 * who has the device when one of them leaves.
 */

import t, { type Test } from 'tap';
import { Errno, IrqSetFlag, MigrationState, PciIrq, PciRegion } from '../../src/wire/index.js';
import { eventfd, memfd, signals } from '../support/memory.js';
import {
  AWAIT,
  commit,
  KEPT,
  kept,
  MEMORY,
  promote,
  ranges,
  readU32,
  setScene,
  writeU32,
} from '../support/next-vmm.js';
import { backToTheFirst, memoryByMessages, whoHasTheDevice } from '../support/next-vmm-cases.js';
import { Register } from '../support/scratch-device.js';
import { outcome, resources, until } from '../support/served.js';
import { RelayBed } from './support.js';

const { CONFIG } = PciRegion;
const { STOP, RUNNING } = MigrationState;

/** A device behind a relay, with a VMM whose guest uses it, and a manager. */
async function boot(t: Test) {
  const relay = new RelayBed(t);
  const { scratch, server } = relay.serveScratch();
  return { ...(await setScene(t, Object.assign(relay, { scratch }))), server };
}

t.test('an understudy is answered, and the server notices nothing', async (t) => {
  const scene = await boot(t);
  const { scratch, first, manager, memory, arrive } = scene;
  t.match(await manager.nextVmm(), { phase: 'none', first: true, second: false, resets: 0 });
  const second = await arrive();
  t.match(await manager.nextVmm(), {
    phase: 'arrived',
    first: true,
    second: true,
    resets: 0,
    absorbed: { resets: 1, configWrites: 3 },
  });
  t.same(scratch.takeCalls(), []);
  t.same(ranges(scene), [MEMORY.address]);
  t.equal(await readU32(first, CONFIG, 0x10), 0xfebf0000);
  t.equal(await kept(first), KEPT);

  t.equal(await readU32(second, CONFIG, 0), await readU32(first, CONFIG, 0));
  await writeU32(second, CONFIG, 0, 0);
  t.equal(await readU32(second, CONFIG, 0), await readU32(first, CONFIG, 0), 'ids stay');
  for (const [bar, size] of [
    [0x10, 0xfffff000],
    [0x18, 0xfffff004],
    [0x1c, 0xffffffff],
    [0x20, 0],
  ] as const) {
    await writeU32(second, CONFIG, bar, 0xffffffff);
    t.equal(await readU32(second, CONFIG, bar), size, 'its BARs have sizes');
  }
  await second.reset();
  t.equal(await readU32(second, CONFIG, 0x10), 0, 'and it sees its own resets');
  t.equal((await readU32(second, CONFIG, 4)) & 0xffff, 0, 'not what the other VMM wrote');
  // PCI Express, device control: function level reset.
  await writeU32(second, CONFIG, scratch.config.findCapability(0x10) + 8, 0x8000);
  t.match(await manager.nextVmm(), { resets: 0, absorbed: { resets: 3 } });

  t.equal(await outcome(second.regionRead(0, 0, new Uint8Array(4))), Errno.EBUSY);
  t.equal(await outcome(second.regionWrite(0, 0, new Uint8Array(4))), Errno.EBUSY);
  t.equal(await outcome(second.regionRead(CONFIG, 0x1000, new Uint8Array(4))), Errno.EINVAL);
  t.equal(await outcome(second.dmaMap(MEMORY, memory)), Errno.EEXIST, 'its memory is its own');
  t.equal(await outcome(second.dmaUnmap({ ...MEMORY, flags: 0 })), 0);
  t.equal(await outcome(second.dmaUnmap({ ...MEMORY, flags: 0 })), Errno.ENOENT);
  t.equal((await manager.dmaMaps()).length, 1);
  t.same(scratch.takeCalls(), []);
});

t.test('they change places', async (t) => {
  const before = resources();
  const scene = await boot(t);
  const { bed, scratch, server, first, manager, vectors, arrive } = scene;
  const second = await arrive();
  const guest = memfd(4096);
  await second.dmaMap({ ...MEMORY, address: 0x20000 }, guest);
  const fresh = [eventfd(), eventfd()];
  await second.assignEventfds(PciIrq.MSIX, fresh);
  t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EBUSY, 'not while the device runs');
  t.match(await manager.nextVmm(), { phase: 'arrived' });
  t.equal(await kept(first), KEPT);

  const [region] = scratch.host.memory.regions;
  await manager.setState(STOP);
  await writeU32(first, 0, Register.RAISE, 1); // pending, as nothing is signalled now
  await manager.setNextVmm({ action: 'promote' });
  t.same(ranges(scene), [0x10000, 0x20000]);
  t.equal(scratch.host.memory.regions[0], region, 'what both have mapped alike was not touched');
  t.match(await manager.dmaMaps(), [{ address: 0x10000 }, { address: 0x20000 }]);
  t.equal(await kept(second), KEPT, 'the device is what it was');
  t.equal(await readU32(second, CONFIG, 0x10), 0xfebf0000, 'its config space too');
  t.equal(await outcome(first.regionRead(0, 0, new Uint8Array(4))), Errno.EBUSY);
  await manager.setState(RUNNING);
  // Each is signalled once more, as one may have got lost with the old VMM.
  await until(() => signals(fresh[0]!) > 0);
  t.ok(signals(fresh[1]!) > 0, 'what was pending goes to the new VMM');
  t.same(vectors.map(signals), [0, 0]);
  await manager.setNextVmm({ action: 'commit' });
  await first.closed();
  t.match(await manager.nextVmm(), { phase: 'none', first: true, second: false, resets: 0 });
  await writeU32(second, 0, Register.RAISE, 0);
  t.equal(signals(fresh[0]!), 1);
  t.same(scratch.takeCalls(), ['quiesce', 'resume']);

  // And what the second has set up is what the next server is given.
  await server.close();
  await bed.said('is gone');
  const next = bed.serveScratch();
  t.equal(await kept(second), 0);
  t.same(
    next.scratch.host.memory.regions.map(({ address }) => address),
    [0x10000, 0x20000],
  );
  t.equal(await readU32(second, CONFIG, 0x10), 0xfebf0000);
  await writeU32(second, 0, Register.RAISE, 1);
  t.equal(signals(fresh[1]!), 1);

  second.close();
  await until(() => next.scratch.calls.includes('reset disconnected'));
  manager.close();
  for (const fd of [guest, ...fresh]) fd.close();
  await bed.relay.close();
  await next.server.close();
  // The memory file and two eventfds of the first VMM are the test's.
  t.same(resources(), { ...before, fds: before.fds + 3 }, 'nothing is left');
});

t.test('memory by messages goes to the VMM that has the device', async (t) =>
  memoryByMessages(t, await boot(t)),
);

// When it has the device again each eventfd is signalled once more, as a signal may have got lost with the other VMM.
t.test('back to the first, after each step', (t) => backToTheFirst(t, boot, 2));

t.test('who leaves, and when', async (t) => {
  await whoHasTheDevice(t, boot);

  t.test('the first, and no VMM comes within the time', async (t) => {
    const { bed, first, manager, scratch } = await boot(t);
    await manager.setNextVmm({ action: 'await', timeoutMs: 30 });
    first.close();
    await until(() => scratch.calls.includes('reset disconnected'));
    await manager.client.closed();
    t.equal(await kept(await bed.vmm()), 0);
  });

  t.test('both, after the exchange', async (t) => {
    const { scratch, first, manager, arrive } = await boot(t);
    const second = await arrive();
    await promote(manager);
    second.close();
    await until(async () => !(await manager.nextVmm()).second);
    t.notMatch(scratch.calls, [/reset/]);
    first.close();
    await until(() => scratch.calls.includes('reset disconnected'));
  });

  t.test('the server, when both are there: the first has the next one', async (t) => {
    const { bed, server, first, vectors, arrive } = await boot(t);
    const second = await arrive();
    await server.close();
    await bed.said('is gone');
    const next = bed.serveScratch();
    t.equal(await kept(first), 0);
    await writeU32(first, 0, Register.RAISE, 1);
    t.equal(signals(vectors[1]!), 1);
    const manager = await bed.manager();
    await promote(manager);
    await commit(manager);
    await writeU32(second, 0, Register.KEPT, 7);
    t.equal(await kept(second), 7);
    t.same(next.scratch.takeCalls().includes('reset disconnected'), false);
  });
});

t.test('what cannot be', async (t) => {
  const { bed, first, manager, arrive } = await boot(t);
  for (const request of [{ action: 'else' }, { action: 'await' }, { action: 'await', timeoutMs: 1e9 }, 5])
    t.equal(await outcome(manager.setNextVmm(request as never)), Errno.EINVAL, JSON.stringify(request));
  const line = eventfd();
  await first.assignEventfds(PciIrq.INTX, [line]);
  line.close();
  t.equal(await outcome(manager.setNextVmm(AWAIT)), Errno.ENOTSUP, 'an interrupt by INTx could be lost');
  await first.setIrqs({
    flags: IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER,
    index: PciIrq.INTX,
    start: 0,
    count: 0,
  });
  await manager.setNextVmm(AWAIT);
  t.equal(await outcome(manager.setNextVmm(AWAIT)), Errno.EBUSY);
  const successor = bed.successor();
  const busy = { code: 'DEVSTATE_E_RELAY', message: /another VMM is about to have the device/ };
  await t.rejects(bed.handOver(successor.takeover), busy);
  await t.rejects(bed.relay.switchTo(bed.serverPath, true), busy);
  const narrow = await outcome(bed.vmm({ capabilities: { maxMsgFds: 1 } }));
  t.equal(narrow, Errno.EINVAL, 'the server cannot be told that it takes less');
  await until(async () => (await manager.nextVmm()).phase === 'awaited');
  await manager.setNextVmm({ action: 'roll-back' });
  await manager.startLogging({ pageSize: 4096, ranges: [] });
  await arrive();
  await manager.setState(STOP);
  t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EBUSY, 'its DMA is logged');
  await manager.stopLogging();
  await manager.setNextVmm({ action: 'promote' });
  await manager.setNextVmm({ action: 'roll-back' });
  await manager.setState(RUNNING);
  t.equal(await kept(first), KEPT);
  await bed.handOver(successor.takeover);
  t.equal(await kept(first), KEPT);
});
