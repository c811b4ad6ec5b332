// SPDX-License-Identifier: Apache-2.0
/**
 * One VMM follows another at a served device: what an understudy is answered and what of it reaches the device, what
 * changes hands, and who has the device when one of them leaves, at each step.
 */

import t, { type Test } from 'tap';
import type { Client, MigrationClient } from '../../src/client/index.js';
import {
  Command,
  DmaMapFlag,
  Errno,
  IrqSetFlag,
  MigrationState,
  PciIrq,
  PciRegion,
} from '../../src/wire/index.js';
import { viewOf } from '../support/hex.js';
import { eventfd, MemoryPeer, memfd, signals } from '../support/memory.js';
import { PlainServed } from '../support/plain-served.js';
import { Register } from '../support/scratch-device.js';
import { outcome, resources, Served, serveScratch, until } from '../support/served.js';

const { CONFIG } = PciRegion;
const { STOP, RUNNING } = MigrationState;
const RW = DmaMapFlag.READ | DmaMapFlag.WRITE;
const TIMEOUT_MS = 60_000;
const await_ = { action: 'await', timeoutMs: TIMEOUT_MS } as const;
const MEMORY = { address: 0x10000, size: 4096, offset: 0, flags: RW };

async function readConfig(vmm: Client, offset: number): Promise<number> {
  const bytes = new Uint8Array(4);
  await vmm.regionRead(CONFIG, offset, bytes);
  return viewOf(bytes).getUint32(0, true);
}

async function writeU32(vmm: Client, region: number, offset: number, value: number): Promise<void> {
  const bytes = new Uint8Array(4);
  viewOf(bytes).setUint32(0, value, true);
  await vmm.regionWrite(region, offset, bytes);
}

/** What QEMU does when it realizes a device: memory, config space, sizes, an eventfd, a reset, BARs to 0. */
async function realize(vmm: Client): Promise<void> {
  const file = memfd(4096);
  await vmm.dmaMap(MEMORY, file);
  file.close();
  await vmm.deviceInfo();
  await vmm.regionInfo(CONFIG);
  await vmm.regionRead(CONFIG, 0, new Uint8Array(256));
  await writeU32(vmm, CONFIG, 0x10, 0xffffffff);
  await writeU32(vmm, CONFIG, 0x10, 0);
  const line = eventfd();
  await vmm.assignEventfds(PciIrq.INTX, [line]);
  line.close();
  await vmm.reset();
  await writeU32(vmm, CONFIG, 0x10, 0);
}

/** A device with a VMM whose guest uses it, and a manager. */
async function boot(t: Test, options = {}) {
  const served = serveScratch(t, options);
  const first = await served.vmm();
  const file = memfd(4096);
  t.teardown(() => file.close());
  await first.dmaMap(MEMORY, file);
  await writeU32(first, CONFIG, 4, 0x6);
  await writeU32(first, CONFIG, 0x10, 0xfebf0000);
  await writeU32(first, 0, Register.KEPT, 0x12345678);
  const vectors = [eventfd(), eventfd()];
  t.teardown(() => {
    for (const vector of vectors) vector.close();
  });
  await first.assignEventfds(PciIrq.MSIX, vectors);
  const manager = await served.manager();
  served.scratch.takeCalls();
  return { served, first, manager, vectors };
}

async function kept(vmm: Client): Promise<number> {
  const bytes = new Uint8Array(4);
  await vmm.regionRead(0, Register.KEPT, bytes);
  return viewOf(bytes).getUint32(0, true);
}

/** Another VMM comes, as far as it gets on its own. */
async function arrive(served: Served, manager: MigrationClient, options = {}): Promise<Client> {
  await manager.setNextVmm(await_);
  const second = await served.vmm(options);
  await realize(second);
  return second;
}

async function promote(manager: MigrationClient): Promise<void> {
  await manager.setState(STOP);
  await manager.setNextVmm({ action: 'promote' });
}

t.test('an understudy is answered, and the device notices nothing', async (t) => {
  const { served, first, manager } = await boot(t);
  t.match(await manager.nextVmm(), { phase: 'none', first: true, second: false, intx: false, resets: 0 });
  const second = await arrive(served, manager);
  t.match(await manager.nextVmm(), {
    phase: 'arrived',
    first: true,
    second: true,
    resets: 0,
    absorbed: { resets: 1, configWrites: 3 },
  });
  t.strictSame(served.scratch.takeCalls(), []);
  t.equal(await readConfig(first, 0x10), 0xfebf0000);
  t.equal(await kept(first), 0x12345678);

  await writeU32(second, CONFIG, 0x10, 0xffffffff);
  t.equal(await readConfig(second, 0x10), 0xfffff000, 'its BARs have sizes');
  await second.reset();
  t.equal(await readConfig(second, 0x10), 0, 'and it sees its own resets');
  t.equal(await readConfig(second, 4), 0x00100000, 'not what the other VMM wrote');
  // PCI Express, device control: function level reset.
  const express = served.scratch.config.findCapability(0x10);
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
  t.strictSame(served.scratch.takeCalls(), []);
});

t.test('they change places', async (t) => {
  const before = resources();
  const { served, first, manager, vectors } = await boot(t);
  const second = await arrive(served, manager);
  const guest = memfd(4096);
  t.teardown(() => guest.close());
  await second.dmaUnmap({ ...MEMORY, flags: 0 });
  await second.dmaMap({ ...MEMORY, address: 0x20000 }, guest);
  t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EBUSY, 'not while the device runs');
  t.match(await manager.nextVmm(), { phase: 'arrived' });
  t.equal(await kept(first), 0x12345678);

  await manager.setState(STOP);
  await writeU32(first, 0, Register.RAISE, 1); // pending, as nothing is signalled now
  await manager.setNextVmm({ action: 'promote' });
  t.match(await manager.dmaMaps(), [{ address: 0x20000 }]);
  t.equal(await kept(second), 0x12345678, 'the device is what it was');
  t.equal(await readConfig(second, 0x10), 0xfebf0000, 'its config space too');
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
  t.strictSame(served.scratch.takeCalls(), ['quiesce', 'resume']);

  // And once more, from the second to a third.
  const third = await arrive(served, manager);
  await promote(manager);
  await manager.setState(RUNNING);
  await manager.setNextVmm({ action: 'commit' });
  await second.closed();
  t.equal(await kept(third), 0x12345678);
  third.close();
  await until(() => served.scratch.calls.includes('reset disconnected'));
  manager.close();
  await served.server.close();
  t.ok(resources().maps <= before.maps, 'nothing is mapped any more');
});

t.test('memory by messages goes to the VMM that has the device', async (t) => {
  const { served, manager } = await boot(t);
  const memory = new MemoryPeer();
  await manager.setNextVmm(await_);
  const second = await served.vmm({ dma: memory.handler });
  await second.dmaMap({ ...MEMORY, address: 0x40000 });
  await promote(manager);
  await manager.setState(RUNNING);
  await manager.setNextVmm({ action: 'commit' });
  await writeU32(second, 0, Register.DMA_ADDRESS, 0x40000);
  await writeU32(second, 0, Register.DMA_LENGTH, 64);
  await writeU32(second, 0, Register.DMA_COMMAND, 2);
  t.equal(memory.writes, 1);
});

t.test('a level that is up is seen by the VMM that has the device', async (t) => {
  const { served, first, manager } = await boot(t);
  const [old, next] = [eventfd(), eventfd()];
  t.teardown(() => {
    old.close();
    next.close();
  });
  await first.assignEventfds(PciIrq.INTX, [old]);
  t.match(await manager.nextVmm(), { intx: true });
  await writeU32(first, 0, Register.INTX, 1);
  t.equal(signals(old), 1);
  const second = await arrive(served, manager);
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

t.test('back to the first, after each step', async (t) => {
  const steps = ['awaited', 'arrived', 'promoted', 'promoted, the second gone'] as const;
  for (const step of steps) {
    const { served, first, manager, vectors } = await boot(t);
    let second: Client | undefined;
    if (step === 'awaited') await manager.setNextVmm(await_);
    else second = await arrive(served, manager);
    if (step.startsWith('promoted')) await promote(manager);
    if (step.endsWith('gone')) {
      second?.close();
      await until(async () => !(await manager.nextVmm()).second);
    }
    await manager.setNextVmm({ action: 'roll-back' });
    await manager.setNextVmm({ action: 'roll-back' });
    await second?.closed();
    if (step.startsWith('promoted')) await manager.setState(RUNNING);
    t.match(await manager.nextVmm(), { phase: 'none', first: true, resets: 0 }, step);
    t.equal(await kept(first), 0x12345678, step);
    t.equal(await readConfig(first, 0x10), 0xfebf0000, step);
    t.match(await manager.dmaMaps(), [{ address: MEMORY.address }], step);
    await writeU32(first, 0, Register.RAISE, 1);
    t.equal(signals(vectors[1]!), 1, step);
    t.notMatch(served.scratch.takeCalls(), /reset/, step);
    t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EINVAL, step);
  }
});

t.test('who leaves, and when', async (t) => {
  const gone = async (manager: MigrationClient, who: 'first' | 'second') =>
    until(async () => !(await manager.nextVmm())[who]);

  t.test('the first before the second comes: cpr-exec', async (t) => {
    const { served, first, manager } = await boot(t);
    await manager.setNextVmm(await_);
    await manager.setState(STOP);
    first.close();
    await gone(manager, 'first');
    t.match(await manager.nextVmm(), { phase: 'awaited', first: false, second: false });
    const second = await served.vmm();
    await realize(second);
    await manager.setNextVmm({ action: 'promote' });
    await manager.setState(RUNNING);
    await manager.setNextVmm({ action: 'commit' });
    t.equal(await kept(second), 0x12345678);
    t.match(await manager.nextVmm(), { phase: 'none', first: true, resets: 0 });
  });

  t.test('the first, and nobody comes within the time', async (t) => {
    const { served, first, manager } = await boot(t);
    await manager.setNextVmm({ action: 'await', timeoutMs: 30 });
    first.close();
    await until(() => served.scratch.calls.includes('reset disconnected'));
    t.match(await manager.nextVmm(), { phase: 'none', first: false, resets: 1 });
    const next = await served.vmm();
    t.equal(await kept(next), 0);
    t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EINVAL);
  });

  t.test('nobody comes within the time, and the first stays', async (t) => {
    const { served, first, manager } = await boot(t);
    await manager.setNextVmm({ action: 'await', timeoutMs: 20 });
    await until(async () => (await manager.nextVmm()).phase === 'none');
    t.equal(await kept(first), 0x12345678);
    first.close();
    await until(() => served.scratch.calls.includes('reset disconnected'));
  });

  t.test('the second comes and goes, and comes again', async (t) => {
    const { served, first, manager } = await boot(t);
    const second = await arrive(served, manager);
    second.close();
    await until(async () => (await manager.nextVmm()).phase === 'awaited');
    const again = await served.vmm();
    await realize(again);
    await promote(manager);
    await manager.setState(RUNNING);
    await manager.setNextVmm({ action: 'commit' });
    await first.closed();
    t.equal(await kept(again), 0x12345678);
    t.match(await manager.nextVmm(), { resets: 0, absorbed: { resets: 2 } });
  });

  t.test('the first, after the exchange: there is no way back', async (t) => {
    const { served, first, manager } = await boot(t);
    const second = await arrive(served, manager);
    await promote(manager);
    first.close();
    await until(async () => (await manager.nextVmm()).phase === 'none');
    await manager.setNextVmm({ action: 'commit' });
    await manager.setState(RUNNING);
    t.equal(await kept(second), 0x12345678);
    second.close();
    await until(() => served.scratch.calls.includes('reset disconnected'));
  });

  t.test('both, after the exchange', async (t) => {
    const { served, first, manager } = await boot(t);
    const second = await arrive(served, manager);
    await promote(manager);
    second.close();
    await gone(manager, 'second');
    t.match(await manager.nextVmm(), { phase: 'promoted', first: true });
    t.notMatch(served.scratch.calls, [/reset/]);
    first.close();
    await until(async () => (await manager.nextVmm()).phase === 'none');
    // Its migration is under way: the reset is its end.
    await manager.setState(RUNNING);
    t.ok(served.scratch.calls.includes('reset disconnected'));
    t.equal((await manager.dmaMaps()).length, 0);
  });

  t.test('the second, before it says anything', async (t) => {
    const { served, first, manager } = await boot(t, { versionTimeoutMs: 20 });
    await manager.setNextVmm(await_);
    const raw = await served.raw();
    await until(async () => (await manager.nextVmm()).phase === 'arrived');
    await manager.setState(STOP);
    t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.ENOTCONN);
    await until(() => raw.isClosed);
    await until(async () => (await manager.nextVmm()).phase === 'awaited');
    await manager.setState(RUNNING);
    await manager.setNextVmm({ action: 'roll-back' });
    t.equal(await kept(first), 0x12345678);
  });

  t.test('the manager: another one goes on', async (t) => {
    const { served, manager } = await boot(t);
    const second = await arrive(served, manager);
    await promote(manager);
    manager.close();
    const next = await served.manager();
    t.match(await next.nextVmm(), { phase: 'promoted' });
    await next.setState(RUNNING);
    await next.setNextVmm({ action: 'commit' });
    t.equal(await kept(second), 0x12345678);
  });

  t.test('a third waits', async (t) => {
    const { served, first, manager } = await boot(t);
    const second = await arrive(served, manager);
    const third = served.vmm();
    await promote(manager);
    await manager.setState(RUNNING);
    await manager.setNextVmm({ action: 'commit' });
    await first.closed();
    t.equal(await kept(second), 0x12345678);
    second.close();
    t.equal(await kept(await third), 0, 'and finds a device that was reset');
  });
});

t.test('what cannot be', async (t) => {
  const { served, first, manager } = await boot(t);
  for (const request of [{ action: 'else' }, { action: 'await' }, { action: 'await', timeoutMs: 1e9 }, 5])
    t.equal(await outcome(manager.setNextVmm(request as never)), Errno.EINVAL, JSON.stringify(request));
  await manager.setNextVmm(await_);
  t.equal(await outcome(manager.setNextVmm(await_)), Errno.EBUSY);
  const format = { uuid: served.scratch.state.uuid, major: 1, minor: 0 };
  await t.rejects(manager.handOver({ socket: '/nowhere', format }, 1000), {
    code: 'DEVSTATE_E_HANDOFF',
    message: /another VMM is about to have the device/,
  });
  await manager.setNextVmm({ action: 'roll-back' });
  await manager.startLogging({ pageSize: 4096, ranges: [] });
  await arrive(served, manager);
  await manager.setState(STOP);
  t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EBUSY, 'its DMA is logged');
  await manager.stopLogging();
  await manager.setNextVmm({ action: 'promote' });
  await manager.setNextVmm({ action: 'roll-back' });
  await manager.setState(RUNNING);
  t.equal(await kept(first), 0x12345678);

  const alone = serveScratch(t);
  const other = await alone.manager();
  t.equal(await outcome(other.setNextVmm(await_)), Errno.ENOTCONN, 'nobody can be followed');
  const plain = new Served(t, new PlainServed([]));
  t.notOk(await (await plain.manager()).canFollow());
});

t.test('a server that ends in the middle', async (t) => {
  for (const step of ['awaited', 'arrived', 'promoted']) {
    const { served, manager } = await boot(t);
    if (step === 'awaited') await manager.setNextVmm(await_);
    else await arrive(served, manager);
    if (step === 'promoted') await promote(manager);
    await served.server.close();
    t.pass(step);
  }
});
