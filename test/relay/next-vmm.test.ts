// SPDX-License-Identifier: Apache-2.0
/**
 * One VMM follows another at a relay whose server knows of one VMM only: what reaches the server, what changes hands, and
 * who has the device when one of them leaves.
 */

import t, { type Test } from 'tap';
import type { Client, MigrationClient } from '../../src/client/index.js';
import type { Fd } from '../../src/transport/index.js';
import { DmaMapFlag, Errno, IrqSetFlag, MigrationState, PciIrq, PciRegion } from '../../src/wire/index.js';
import { viewOf } from '../support/hex.js';
import { eventfd, MemoryPeer, memfd, signals } from '../support/memory.js';
import { Register } from '../support/scratch-device.js';
import { outcome, resources, until } from '../support/served.js';
import { RelayBed } from './support.js';

t.setTimeout(60_000);

const { CONFIG } = PciRegion;
const { STOP, RUNNING } = MigrationState;
const RW = DmaMapFlag.READ | DmaMapFlag.WRITE;
const await_ = { action: 'await', timeoutMs: 60_000 } as const;
const MEMORY = { address: 0x10000, size: 4096, offset: 0, flags: RW };

async function readU32(vmm: Client, region: number, offset: number): Promise<number> {
  const bytes = new Uint8Array(4);
  await vmm.regionRead(region, offset, bytes);
  return viewOf(bytes).getUint32(0, true);
}

async function writeU32(vmm: Client, region: number, offset: number, value: number): Promise<void> {
  const bytes = new Uint8Array(4);
  viewOf(bytes).setUint32(0, value, true);
  await vmm.regionWrite(region, offset, bytes);
}

const kept = (vmm: Client): Promise<number> => readU32(vmm, 0, Register.KEPT);

/** What QEMU does when it realizes a device: memory, config space, sizes, an eventfd, a reset, BARs to 0. */
async function realize(vmm: Client, memory: Fd): Promise<void> {
  await vmm.dmaMap(MEMORY, memory);
  await vmm.deviceInfo();
  await vmm.regionInfo(CONFIG);
  await vmm.irqInfo(PciIrq.MSIX);
  await vmm.regionRead(CONFIG, 0, new Uint8Array(256));
  await writeU32(vmm, CONFIG, 0x10, 0xffffffff);
  await writeU32(vmm, CONFIG, 0x10, 0);
  const line = eventfd();
  await vmm.assignEventfds(PciIrq.INTX, [line]);
  line.close();
  await vmm.reset();
  await writeU32(vmm, CONFIG, 0x10, 0);
}

/** A device behind a relay, with a VMM whose guest uses it, and a manager. */
async function boot(t: Test) {
  const bed = new RelayBed(t);
  const { scratch, server } = bed.serveScratch();
  const first = await bed.vmm();
  const memory = memfd(4096);
  const vectors = [eventfd(), eventfd()];
  t.teardown(() => {
    for (const fd of [memory, ...vectors]) fd.close();
  });
  await first.dmaMap(MEMORY, memory);
  await writeU32(first, CONFIG, 4, 0x6);
  await writeU32(first, CONFIG, 0x10, 0xfebf0000);
  await writeU32(first, 0, Register.KEPT, 0x12345678);
  await first.assignEventfds(PciIrq.MSIX, vectors);
  const manager = await bed.manager();
  scratch.takeCalls();
  return { bed, scratch, server, first, manager, vectors, memory };
}
type Booted = Awaited<ReturnType<typeof boot>>;

async function arrive({ bed, manager, memory }: Booted): Promise<Client> {
  await manager.setNextVmm(await_);
  const second = await bed.vmm();
  await realize(second, memory);
  return second;
}

async function promote(manager: MigrationClient): Promise<void> {
  await manager.setState(STOP);
  await manager.setNextVmm({ action: 'promote' });
}

const ranges = ({ scratch }: Booted): number[] => scratch.host.memory.regions.map(({ address }) => address);

t.test('an understudy is answered, and the server notices nothing', async (t) => {
  const booted = await boot(t);
  const { scratch, first, manager, memory } = booted;
  t.match(await manager.nextVmm(), { phase: 'none', first: true, second: false, resets: 0 });
  const second = await arrive(booted);
  t.match(await manager.nextVmm(), {
    phase: 'arrived',
    first: true,
    second: true,
    resets: 0,
    absorbed: { resets: 1, configWrites: 3 },
  });
  t.same(scratch.takeCalls(), []);
  t.same(ranges(booted), [MEMORY.address]);
  t.equal(await readU32(first, CONFIG, 0x10), 0xfebf0000);
  t.equal(await kept(first), 0x12345678);

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
  const booted = await boot(t);
  const { bed, scratch, server, first, manager, vectors } = booted;
  const second = await arrive(booted);
  const guest = memfd(4096);
  await second.dmaMap({ ...MEMORY, address: 0x20000 }, guest);
  const fresh = [eventfd(), eventfd()];
  await second.assignEventfds(PciIrq.MSIX, fresh);
  t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EBUSY, 'not while the device runs');
  t.match(await manager.nextVmm(), { phase: 'arrived' });
  t.equal(await kept(first), 0x12345678);

  const [region] = scratch.host.memory.regions;
  await manager.setState(STOP);
  await writeU32(first, 0, Register.RAISE, 1); // pending, as nothing is signalled now
  await manager.setNextVmm({ action: 'promote' });
  t.same(ranges(booted), [0x10000, 0x20000]);
  t.equal(scratch.host.memory.regions[0], region, 'what both have mapped alike was not touched');
  t.match(await manager.dmaMaps(), [{ address: 0x10000 }, { address: 0x20000 }]);
  t.equal(await kept(second), 0x12345678, 'the device is what it was');
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

t.test('memory by messages goes to the VMM that has the device', async (t) => {
  const booted = await boot(t);
  const { bed, manager } = booted;
  const memory = new MemoryPeer();
  await manager.setNextVmm(await_);
  const second = await bed.vmm({ dma: memory.handler });
  await second.dmaMap({ ...MEMORY, address: 0x40000 });
  await promote(manager);
  t.same(ranges(booted), [0x40000]);
  await manager.setState(RUNNING);
  await manager.setNextVmm({ action: 'commit' });
  await writeU32(second, 0, Register.DMA_ADDRESS, 0x40000);
  await writeU32(second, 0, Register.DMA_LENGTH, 64);
  await writeU32(second, 0, Register.DMA_COMMAND, 2);
  t.equal(memory.writes, 1);
});

t.test('back to the first, after each step', async (t) => {
  const steps = ['awaited', 'arrived', 'promoted', 'promoted, the second gone'] as const;
  for (const step of steps) {
    const booted = await boot(t);
    const { scratch, first, manager, vectors } = booted;
    let second: Client | undefined;
    if (step === 'awaited') await manager.setNextVmm(await_);
    else second = await arrive(booted);
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
    t.equal(await readU32(first, CONFIG, 0x10), 0xfebf0000, step);
    t.same(ranges(booted), [MEMORY.address], step);
    await writeU32(first, 0, Register.RAISE, 1);
    t.ok(signals(vectors[1]!) > 0, step);
    t.notMatch(scratch.takeCalls(), [/reset/], step);
    t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EINVAL, step);
  }
});

t.test('who leaves, and when', async (t) => {
  t.test('the first before the second comes: cpr-exec', async (t) => {
    const booted = await boot(t);
    const { bed, first, manager, memory, scratch } = booted;
    await manager.setNextVmm(await_);
    await manager.setState(STOP);
    first.close();
    await until(async () => !(await manager.nextVmm()).first);
    t.match(await manager.nextVmm(), { phase: 'awaited', first: false, second: false });
    const second = await bed.vmm();
    await realize(second, memory);
    await manager.setNextVmm({ action: 'promote' });
    await manager.setState(RUNNING);
    await manager.setNextVmm({ action: 'commit' });
    t.equal(await kept(second), 0x12345678);
    t.match(await manager.nextVmm(), { phase: 'none', first: true, resets: 0 });
    t.same(scratch.takeCalls(), ['quiesce', 'resume']);
  });

  t.test('the first, and nobody comes within the time', async (t) => {
    const { bed, first, manager, scratch } = await boot(t);
    await manager.setNextVmm({ action: 'await', timeoutMs: 30 });
    first.close();
    await until(() => scratch.calls.includes('reset disconnected'));
    await manager.client.closed();
    t.equal(await kept(await bed.vmm()), 0);
  });

  t.test('the second comes and goes, and comes again', async (t) => {
    const booted = await boot(t);
    const { bed, first, manager, memory } = booted;
    const second = await arrive(booted);
    second.close();
    await until(async () => (await manager.nextVmm()).phase === 'awaited');
    const again = await bed.vmm();
    await realize(again, memory);
    await promote(manager);
    await manager.setState(RUNNING);
    await manager.setNextVmm({ action: 'commit' });
    await first.closed();
    t.equal(await kept(again), 0x12345678);
    t.match(await manager.nextVmm(), { resets: 0, absorbed: { resets: 2 } });
  });

  t.test('the first, after the exchange: there is no way back', async (t) => {
    const booted = await boot(t);
    const { scratch, first, manager } = booted;
    const second = await arrive(booted);
    await promote(manager);
    first.close();
    await until(async () => (await manager.nextVmm()).phase === 'none');
    await manager.setNextVmm({ action: 'commit' });
    await manager.setState(RUNNING);
    t.equal(await kept(second), 0x12345678);
    second.close();
    await until(() => scratch.calls.includes('reset disconnected'));
  });

  t.test('both, after the exchange', async (t) => {
    const booted = await boot(t);
    const { scratch, first, manager } = booted;
    const second = await arrive(booted);
    await promote(manager);
    second.close();
    await until(async () => !(await manager.nextVmm()).second);
    t.notMatch(scratch.calls, [/reset/]);
    first.close();
    await until(() => scratch.calls.includes('reset disconnected'));
  });

  t.test('the manager: another one goes on', async (t) => {
    const booted = await boot(t);
    const second = await arrive(booted);
    await promote(booted.manager);
    booted.manager.close();
    const next = await booted.bed.manager();
    t.match(await next.nextVmm(), { phase: 'promoted' });
    await next.setState(RUNNING);
    await next.setNextVmm({ action: 'commit' });
    t.equal(await kept(second), 0x12345678);
  });

  t.test('the server, when both are there: the first has the next one', async (t) => {
    const booted = await boot(t);
    const { bed, server, first, vectors } = booted;
    const second = await arrive(booted);
    await server.close();
    await bed.said('is gone');
    const next = bed.serveScratch();
    t.equal(await kept(first), 0);
    await writeU32(first, 0, Register.RAISE, 1);
    t.equal(signals(vectors[1]!), 1);
    const manager = await bed.manager();
    await promote(manager);
    await manager.setState(RUNNING);
    await manager.setNextVmm({ action: 'commit' });
    await writeU32(second, 0, Register.KEPT, 7);
    t.equal(await kept(second), 7);
    t.same(next.scratch.takeCalls().includes('reset disconnected'), false);
  });

  t.test('nobody, but a third comes: it waits', async (t) => {
    const booted = await boot(t);
    const second = await arrive(booted);
    const third = booted.bed.vmm();
    await promote(booted.manager);
    await booted.manager.setState(RUNNING);
    await booted.manager.setNextVmm({ action: 'commit' });
    await booted.first.closed();
    t.equal(await kept(second), 0x12345678);
    second.close();
    t.equal(await kept(await third), 0, 'and finds a device that was reset');
  });
});

t.test('what cannot be', async (t) => {
  const booted = await boot(t);
  const { bed, first, manager } = booted;
  for (const request of [{ action: 'else' }, { action: 'await' }, { action: 'await', timeoutMs: 1e9 }, 5])
    t.equal(await outcome(manager.setNextVmm(request as never)), Errno.EINVAL, JSON.stringify(request));
  const line = eventfd();
  await first.assignEventfds(PciIrq.INTX, [line]);
  line.close();
  t.equal(await outcome(manager.setNextVmm(await_)), Errno.ENOTSUP, 'an interrupt by INTx could be lost');
  await first.setIrqs({
    flags: IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER,
    index: PciIrq.INTX,
    start: 0,
    count: 0,
  });
  await manager.setNextVmm(await_);
  t.equal(await outcome(manager.setNextVmm(await_)), Errno.EBUSY);
  const successor = bed.successor();
  const busy = { code: 'DEVSTATE_E_RELAY', message: /another VMM is about to have the device/ };
  await t.rejects(bed.handOver(successor.takeover), busy);
  await t.rejects(bed.relay.switchTo(bed.serverPath, true), busy);
  const narrow = await outcome(bed.vmm({ capabilities: { maxMsgFds: 1 } }));
  t.equal(narrow, Errno.EINVAL, 'the server cannot be told that it takes less');
  await until(async () => (await manager.nextVmm()).phase === 'awaited');
  await manager.setNextVmm({ action: 'roll-back' });
  await manager.startLogging({ pageSize: 4096, ranges: [] });
  await arrive(booted);
  await manager.setState(STOP);
  t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EBUSY, 'its DMA is logged');
  await manager.stopLogging();
  await manager.setNextVmm({ action: 'promote' });
  await manager.setNextVmm({ action: 'roll-back' });
  await manager.setState(RUNNING);
  t.equal(await kept(first), 0x12345678);
  await bed.handOver(successor.takeover);
  t.equal(await kept(first), 0x12345678);
});
