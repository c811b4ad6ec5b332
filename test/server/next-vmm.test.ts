// SPDX-License-Identifier: Apache-2.0
/**
 * One VMM follows another at a served device: what an understudy is answered and what of it reaches the device, what
 * changes hands, and who has the device when one of them leaves, at each step.
 */

import t, { type Test } from 'tap';
import { Command, Errno, IrqSetFlag, MigrationState, PciIrq, PciRegion } from '../../src/wire/index.js';
import { eventfd, memfd, signals } from '../support/memory.js';
import {
  AWAIT,
  commit,
  KEPT,
  kept,
  MEMORY,
  promote,
  readU32,
  setScene,
  writeU32,
} from '../support/next-vmm.js';
import { backToTheFirst, memoryByMessages, whoHasTheDevice } from '../support/next-vmm-cases.js';
import { PlainServed } from '../support/plain-served.js';
import { Register } from '../support/scratch-device.js';
import { outcome, resources, Served, serveScratch, until } from '../support/served.js';

const { CONFIG } = PciRegion;
const { STOP, RUNNING } = MigrationState;

/** A device with a VMM whose guest uses it, and a manager. */
const boot = (t: Test, options = {}) => setScene(t, serveScratch(t, options));

t.test('an understudy is answered, and the device notices nothing', async (t) => {
  const { first, manager, scratch, arrive } = await boot(t);
  t.match(await manager.nextVmm(), { phase: 'none', first: true, second: false, intx: false, resets: 0 });
  const second = await arrive();
  t.match(await manager.nextVmm(), {
    phase: 'arrived',
    first: true,
    second: true,
    resets: 0,
    absorbed: { resets: 1, configWrites: 3 },
  });
  t.strictSame(scratch.takeCalls(), []);
  t.equal(await readU32(first, CONFIG, 0x10), 0xfebf0000);
  t.equal(await kept(first), KEPT);

  await writeU32(second, CONFIG, 0x10, 0xffffffff);
  t.equal(await readU32(second, CONFIG, 0x10), 0xfffff000, 'its BARs have sizes');
  await second.reset();
  t.equal(await readU32(second, CONFIG, 0x10), 0, 'and it sees its own resets');
  t.equal(await readU32(second, CONFIG, 4), 0x00100000, 'not what the other VMM wrote');
  // PCI Express, device control: function level reset.
  const express = scratch.config.findCapability(0x10);
  await writeU32(second, CONFIG, express + 8, 0x8000);
  t.match(await manager.nextVmm(), { resets: 0, absorbed: { resets: 3 } });

  t.equal(await outcome(second.regionRead(0, 0, new Uint8Array(4))), Errno.EBUSY);
  t.equal(await outcome(second.regionWrite(0, 0, new Uint8Array(4))), Errno.EBUSY);
  t.equal(await outcome(second.regionRead(CONFIG, 254, new Uint8Array(4))), Errno.EINVAL);
  t.equal(await outcome(second.dmaMap(MEMORY)), Errno.EEXIST, 'its memory is its own');
  t.equal(await outcome(second.dmaUnmap({ ...MEMORY, flags: 0 })), 0);
  t.equal(await outcome(second.dmaUnmap({ ...MEMORY, flags: 0 })), Errno.ENOENT);
  t.equal(await outcome(second.dmaMap(MEMORY)), 0, 'without an fd too');
  t.equal((await manager.dmaMaps()).length, 1);
  const mask = {
    flags: IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_MASK,
    index: PciIrq.INTX,
    start: 0,
    count: 1,
  };
  t.equal(await outcome(second.setIrqs(mask)), 0);
  t.equal(await outcome(second.setIrqs({ ...mask, index: 9 })), Errno.EINVAL);
  t.equal(await outcome(second.request(Command.DEVICE_FEATURE, [new Uint8Array(8)], () => {})), Errno.EINVAL);
  t.strictSame(scratch.takeCalls(), []);
});

t.test('they change places', async (t) => {
  const before = resources();
  const { bed, first, manager, vectors, scratch, arrive } = await boot(t);
  const second = await arrive();
  const guest = memfd(4096);
  t.teardown(() => guest.close());
  await second.dmaUnmap({ ...MEMORY, flags: 0 });
  await second.dmaMap({ ...MEMORY, address: 0x20000 }, guest);
  t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EBUSY, 'not while the device runs');
  t.match(await manager.nextVmm(), { phase: 'arrived' });
  t.equal(await kept(first), KEPT);

  await manager.setState(STOP);
  await writeU32(first, 0, Register.RAISE, 1); // pending, as nothing is signalled now
  await manager.setNextVmm({ action: 'promote' });
  t.match(await manager.dmaMaps(), [{ address: 0x20000 }]);
  t.equal(await kept(second), KEPT, 'the device is what it was');
  t.equal(await readU32(second, CONFIG, 0x10), 0xfebf0000, 'its config space too');
  t.equal(await outcome(first.regionRead(0, 0, new Uint8Array(4))), Errno.EBUSY);
  const fresh = [eventfd(), eventfd()];
  t.teardown(() => {
    for (const vector of fresh) vector.close();
  });
  await second.assignEventfds(PciIrq.MSIX, fresh);
  await manager.setState(RUNNING);
  t.strictSame([...vectors, ...fresh].map(signals), [0, 0, 0, 1], 'what was pending goes to the new VMM');
  await manager.setNextVmm({ action: 'commit' });
  await first.closed();
  t.match(await manager.nextVmm(), { phase: 'none', first: true, second: false, resets: 0 });
  await writeU32(second, 0, Register.RAISE, 0);
  t.equal(signals(fresh[0]!), 1);
  t.strictSame(scratch.takeCalls(), ['quiesce', 'resume']);

  // And once more, from the second to a third.
  const third = await arrive();
  await promote(manager);
  await commit(manager);
  await second.closed();
  t.equal(await kept(third), KEPT);
  third.close();
  await until(() => scratch.calls.includes('reset disconnected'));
  manager.close();
  await bed.server.close();
  t.ok(resources().maps <= before.maps, 'nothing is mapped any more');
});

t.test('memory by messages goes to the VMM that has the device', async (t) =>
  memoryByMessages(t, await boot(t)),
);

t.test('a level that is up is seen by the VMM that has the device', async (t) => {
  const { first, manager, arrive } = await boot(t);
  const [old, next] = [eventfd(), eventfd()];
  t.teardown(() => {
    old.close();
    next.close();
  });
  await first.assignEventfds(PciIrq.INTX, [old]);
  t.match(await manager.nextVmm(), { intx: true });
  await writeU32(first, 0, Register.INTX, 1);
  t.equal(signals(old), 1);
  const second = await arrive();
  await second.assignEventfds(PciIrq.INTX, [next]);
  t.equal(signals(next), 0);
  await promote(manager);
  await manager.setState(RUNNING);
  t.equal(signals(next), 1);
  await manager.setState(STOP);
  await manager.setNextVmm({ action: 'roll-back' });
  await manager.setState(RUNNING);
  t.equal(signals(old), 0, 'masked since it was signalled');
  const unmask = {
    flags: IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_UNMASK,
    index: PciIrq.INTX,
    start: 0,
    count: 1,
  };
  await first.setIrqs(unmask);
  t.equal(signals(old), 1);
});

t.test('back to the first, after each step', (t) => backToTheFirst(t, boot, 1));

t.test('who leaves, and when', async (t) => {
  await whoHasTheDevice(t, boot);

  t.test('the first, and no VMM comes within the time', async (t) => {
    const { bed, first, manager, scratch } = await boot(t);
    await manager.setNextVmm({ action: 'await', timeoutMs: 30 });
    first.close();
    await until(() => scratch.calls.includes('reset disconnected'));
    t.match(await manager.nextVmm(), { phase: 'none', first: false, resets: 1 });
    const next = await bed.vmm();
    t.equal(await kept(next), 0);
    t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EINVAL);
  });

  t.test('both, after the exchange', async (t) => {
    const { first, manager, scratch, arrive } = await boot(t);
    const second = await arrive();
    await promote(manager);
    second.close();
    await until(async () => !(await manager.nextVmm()).second);
    t.match(await manager.nextVmm(), { phase: 'promoted', first: true });
    t.notMatch(scratch.calls, [/reset/]);
    first.close();
    await until(async () => (await manager.nextVmm()).phase === 'none');
    // Its migration is under way: the reset is its end.
    await manager.setState(RUNNING);
    t.ok(scratch.calls.includes('reset disconnected'));
    t.equal((await manager.dmaMaps()).length, 0);
  });

  t.test('the second, before it says anything', async (t) => {
    const { bed, first, manager } = await boot(t, { versionTimeoutMs: 20 });
    await manager.setNextVmm(AWAIT);
    const raw = await bed.raw();
    await until(async () => (await manager.nextVmm()).phase === 'arrived');
    await manager.setState(STOP);
    t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.ENOTCONN);
    await until(() => raw.isClosed);
    await until(async () => (await manager.nextVmm()).phase === 'awaited');
    await manager.setState(RUNNING);
    await manager.setNextVmm({ action: 'roll-back' });
    t.equal(await kept(first), KEPT);
  });
});

t.test('what cannot be', async (t) => {
  const { first, manager, scratch, arrive } = await boot(t);
  for (const request of [{ action: 'else' }, { action: 'await' }, { action: 'await', timeoutMs: 1e9 }, 5])
    t.equal(await outcome(manager.setNextVmm(request as never)), Errno.EINVAL, JSON.stringify(request));
  await manager.setNextVmm(AWAIT);
  t.equal(await outcome(manager.setNextVmm(AWAIT)), Errno.EBUSY);
  const format = { uuid: scratch.state.uuid, major: 1, minor: 0 };
  await t.rejects(manager.handOver({ socket: '/nowhere', format }, 1000), {
    code: 'DEVSTATE_E_HANDOFF',
    message: /another VMM is about to have the device/,
  });
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

  const alone = serveScratch(t);
  const other = await alone.manager();
  t.equal(await outcome(other.setNextVmm(AWAIT)), Errno.ENOTCONN, 'there is no VMM to be followed');
  const plain = new Served(t, new PlainServed([]));
  t.notOk(await (await plain.manager()).canFollow());
});

t.test('a server that ends in the middle', async (t) => {
  for (const step of ['awaited', 'arrived', 'promoted']) {
    const { bed, manager, arrive } = await boot(t);
    if (step === 'awaited') await manager.setNextVmm(AWAIT);
    else await arrive();
    if (step === 'promoted') await promote(manager);
    await bed.server.close();
    t.pass(step);
  }
});
