// SPDX-License-Identifier: Apache-2.0
/** The relay between a client and a server of ours: accesses, memory, interrupts, migration, the death of servers. */

import t from 'tap';
import type { Client } from '../../src/client/index.js';
import {
  Command,
  DmaMapFlag,
  Errno,
  Feature,
  IrqSetFlag,
  MigrationFlag,
  MigrationState,
  PciIrq,
  PciRegion,
  RegionInfoFlag,
  RequestError,
} from '../../src/wire/index.js';
import { eventfd, MemoryPeer, memfd, signals } from '../support/memory.js';
import { MSIX_VECTORS, Register, SCRATCH_ID } from '../support/scratch-device.js';
import { outcome, resources, until } from '../support/served.js';
import { RelayBed } from './support.js';

const READ_WRITE = DmaMapFlag.READ | DmaMapFlag.WRITE;
const { RUNNING, STOP_COPY, RESUMING } = MigrationState;

async function read32(client: Client, offset: number): Promise<number> {
  const bytes = new Uint8Array(4);
  await client.regionRead(0, offset, bytes);
  return new DataView(bytes.buffer).getUint32(0, true);
}

function write32(client: Client, offset: number, value: number, noReply = false): Promise<void> {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value, true);
  return client.regionWrite(0, offset, bytes, { noReply });
}

async function config(client: Client, offset: number, length: number): Promise<number[]> {
  const bytes = new Uint8Array(length);
  await client.regionRead(PciRegion.CONFIG, offset, bytes);
  return [...bytes];
}

/** Sets up DMA to and from `address`; the write that starts it settles when it has ended. */
async function dma(client: Client, address: number, length: number, command: number): Promise<void> {
  await write32(client, Register.DMA_ADDRESS, address);
  await write32(client, Register.DMA_ADDRESS + 4, 0);
  await write32(client, Register.DMA_LENGTH, length);
  await write32(client, Register.DMA_COMMAND, command);
}

t.test('what a VMM does passes through', async (t) => {
  const before = resources();
  const bed = new RelayBed(t);
  const { scratch, server } = bed.serveScratch();
  const remote = new MemoryPeer();
  const vmm = await bed.vmm({ dma: remote.handler });
  const info = await vmm.deviceInfo();
  t.equal(info.regions, PciRegion.COUNT);
  t.equal((await vmm.irqInfo(PciIrq.MSIX)).count, MSIX_VECTORS);

  t.equal(await read32(vmm, Register.ID), SCRATCH_ID);
  await write32(vmm, Register.KEPT, 0x12345678);
  t.equal(await read32(vmm, Register.KEPT), 0x12345678);
  for (let i = 0; i < 300; i++) void write32(vmm, Register.KEPT + 4, i, true);
  t.equal(await read32(vmm, Register.KEPT + 4), 299, 'posted writes');
  const long = Uint8Array.from({ length: 4096 }, (_, i) => i % 251);
  await vmm.regionWrite(2, 0, long);
  t.same(scratch.state.memory, long);
  const many = await Promise.all(Array.from({ length: 500 }, () => read32(vmm, Register.ID)));
  t.ok(many.every((value) => value === SCRATCH_ID));
  t.equal(await outcome(vmm.regionRead(5, 0, new Uint8Array(4))), Errno.EINVAL, 'refusals');

  const [memory, irq] = [memfd(8192), eventfd()];
  await vmm.dmaMap({ flags: READ_WRITE, offset: 4096, address: 0x10000, size: 4096 }, memory);
  await vmm.dmaMap({ flags: READ_WRITE, offset: 0, address: 0x20000, size: 4096 });
  await vmm.setIrqs(
    { flags: IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER, index: PciIrq.MSIX, start: 3, count: 1 },
    { fds: [irq] },
  );
  await write32(vmm, Register.RAISE, 3);
  t.equal(signals(irq), 1);
  await dma(vmm, 0x20000, 256, 2);
  t.same(remote.bytes(0x20000, 256), long.subarray(0, 256), 'memory by messages');
  await dma(vmm, 0x10000, 4096, 2);
  const manager = await bed.manager();
  const seen = new Uint8Array(4096);
  await manager.readMemory(0x10000, seen);
  t.same(seen, long, 'the relay has the memory too');
  t.same(await manager.dmaMaps(), [{ address: 0x10000, size: 4096, flags: READ_WRITE }]);
  await vmm.dmaUnmap({ flags: 0, address: 0x10000, size: 4096 });
  t.equal(await outcome(manager.readMemory(0x10000, seen)), Errno.EFAULT);
  t.equal(await outcome(vmm.dmaUnmap({ flags: 0, address: 0x10000, size: 4096 })), Errno.ENOENT);

  memory.close();
  irq.close();
  vmm.close();
  manager.close();
  await bed.said('the VMM has left');
  await until(() => scratch.calls.includes('reset disconnected'));
  await bed.relay.close();
  await server.close();
  t.same(resources(), before, 'nothing is left');
});

t.test('no memory of a server reaches the VMM', async (t) => {
  const bed = new RelayBed(t);
  bed.serveScratch({ migration: 'both', migrationRegion: { mapped: true } });
  const vmm = await bed.vmm();
  const info = await vmm.regionInfo(PciRegion.COUNT);
  t.ok(info.size > 0);
  t.equal(info.flags & RegionInfoFlag.MMAP, 0);
  t.equal(info.fd, undefined);
  t.same((await vmm.regionIoFds(0)).entries, []);
  const manager = await bed.manager();
  const region = await manager.client.regionInfo(PciRegion.COUNT);
  t.ok(region.fd?.isOpen, 'a manager gets that of the migration region');
  region.fd?.close();
});

t.test('unless it is to: then no other server can take its place', async (t) => {
  const bed = new RelayBed(t, { mapping: true, holdMs: 50 });
  const { server } = bed.serveScratch({ migration: 'both', migrationRegion: { mapped: true } });
  const vmm = await bed.vmm();
  t.equal(await read32(vmm, Register.ID), SCRATCH_ID);
  const info = await vmm.regionInfo(PciRegion.COUNT);
  t.ok(info.fd?.isOpen);
  info.fd?.close();
  await t.rejects(bed.relay.switchTo(bed.serverPath, true), { code: 'DEVSTATE_E_RELAY' });
  await server.close();
  await bed.said('is gone');
  bed.serveScratch({ migration: 'both' });
  t.equal(await outcome(read32(vmm, Register.ID)), Errno.ETIMEDOUT);
  t.notOk(bed.relay.isAttached);
});

t.test('a manager migrates a device whose server has no migration socket', async (t) => {
  const [from, to] = [new RelayBed(t), new RelayBed(t)];
  const [source, destination] = [from.serveScratch(), to.serveScratch()];
  const [vmm, next] = [await from.vmm(), await to.vmm()];
  const bytes = Uint8Array.from({ length: 4096 }, (_, i) => (i * 7) % 253);
  await vmm.regionWrite(2, 0, bytes);
  const [a, b] = [await from.manager(), await to.manager()];
  t.ok((await a.flags()) & MigrationFlag.STOP_COPY);
  t.equal(await a.description(), undefined);
  t.equal(await a.formats(), undefined);

  await b.setState(RESUMING);
  await a.setState(STOP_COPY);
  t.notOk(source.scratch.running);
  const buffer = new Uint8Array(1000);
  for (let size = await a.readData(buffer); size > 0; size = await a.readData(buffer))
    await b.writeData(buffer.slice(0, size));
  await b.setState(RUNNING);
  t.same(destination.scratch.state.memory, bytes);
  t.ok(destination.scratch.running);
  const there = new Uint8Array(4096);
  await next.regionRead(2, 0, there);
  t.same(there, bytes);

  await a.setNote(Uint8Array.of(1, 2, 3));
  t.same(await (await from.manager()).note(), Uint8Array.of(1, 2, 3));
  t.equal(
    await outcome(a.client.regionRead(0, 0, new Uint8Array(4))),
    Errno.EINVAL,
    'managers play no guest',
  );
  t.equal(await outcome(a.client.request(Command.DMA_MAP, [], () => {})), Errno.EINVAL);
});

t.test('a manager learns why the server behind the relay refuses, and why it is sent away', async (t) => {
  const bed = new RelayBed(t, { holdMs: 50 });
  await t.rejects(bed.manager(), {
    message: /closed the connection: no VMM is connected to the relay; start it/,
  });
  const { scratch, server } = bed.serveScratch();
  const vmm = await bed.vmm();
  const [first, second] = [await bed.manager(), await bed.manager()];
  await t.rejects(first.writeData(new Uint8Array(8)), {
    errno: Errno.EINVAL,
    message: /refuses MIG_DATA_WRITE: EINVAL: no migration data in RUNNING/,
  });
  scratch.hook = (step) => {
    if (step.startsWith('quiesce')) throw new RequestError(Errno.EIO, 'no lock of /var/lib/disks/one.img');
  };
  const refused = { message: /refuses DEVICE_FEATURE: EIO: no lock of one\.img/ };
  await t.rejects(first.setState(STOP_COPY), refused, 'folders of the host are not for a VMM');
  // Errors of others come in between, and are not told as this one's.
  const failing = first.client.request(Command.MIG_DATA_READ, [new Uint8Array(8)], () => {});
  await t.rejects(failing);
  t.equal(await outcome(vmm.regionRead(5, 0, new Uint8Array(4))), Errno.EINVAL);
  const words = new TextDecoder().decode(await first.getFeature(Feature.DEVSTATE_LAST_ERROR, 16384));
  t.equal(words, '', 'the last error at the server is that of the VMM');
  await server.close();
  await Promise.all([first.client.closed(), second.client.closed()]);
  for (const manager of [first, second])
    await t.rejects(manager.state(), {
      code: 'DEVSTATE_E_CONNECTION_CLOSED',
      message: new RegExp(`closed the connection: the device server at ${bed.serverPath} is gone`),
    });
});

t.test('a relay makes room for a manager, and says why it does not', async (t) => {
  const bed = new RelayBed(t);
  bed.serveScratch();
  await bed.vmm();
  const driver = await bed.manager();
  await driver.setState(STOP_COPY);
  const silent = await Promise.all(Array.from({ length: 15 }, () => bed.manager()));
  await t.rejects(bed.manager(), { message: /16 managers are connected and at work; end one/ });
  await until(async () => (await outcome(bed.manager())) === 0);
  t.ok(silent.some(({ client }) => client.farewell?.includes('silent the longest')));
  t.equal(await driver.state(), STOP_COPY);
});

t.test('a server that dies is replaced by the next one at its path', async (t) => {
  const bed = new RelayBed(t);
  const first = bed.serveScratch();
  const vmm = await bed.vmm();
  const [memory, irq] = [memfd(4096), eventfd()];
  t.teardown(() => {
    memory.close();
    irq.close();
  });
  await vmm.dmaMap({ flags: READ_WRITE, offset: 0, address: 0x10000, size: 4096 }, memory);
  const assign = IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER;
  await vmm.setIrqs({ flags: assign, index: PciIrq.MSIX, start: 7, count: 1 }, { fds: [irq] });
  await vmm.regionWrite(PciRegion.CONFIG, 0x10, Uint8Array.of(0, 0xc0, 0xbf, 0xfe));
  await vmm.regionWrite(PciRegion.CONFIG, 0x04, Uint8Array.of(0x06, 0x01));
  const manager = await bed.manager();
  await manager.state();
  const steady = resources();

  for (let round = 0; round < 5; round++) {
    await (round === 0 ? first.server : bed.servers.at(-1)!.server).close();
    await bed.said('is gone');
    const waiting = [read32(vmm, Register.ID), config(vmm, 0x10, 4), config(vmm, 0x04, 2)];
    const { scratch } = bed.serveScratch();
    t.same(await Promise.all(waiting), [SCRATCH_ID, [0, 0xc0, 0xbf, 0xfe], [0x06, 0x01]]);
    await write32(vmm, Register.RAISE, 7);
    t.equal(signals(irq), 1, 'its eventfd');
    scratch.state.memory.fill(round + 1);
    await dma(vmm, 0x10000, 4096, 2);
    t.ok(scratch.running);
  }
  t.ok(manager.client.isClosed, 'managers notice');
  t.same(resources(), { ...steady, fds: steady.fds - 2 }, 'nothing piles up; the manager is gone');
});

t.test('a request that was under way when the server died is made again', async (t) => {
  const bed = new RelayBed(t);
  const first = bed.serveScratch();
  const vmm = await bed.vmm();
  first.scratch.hook = (step) => (step === 'slow' ? new Promise(() => {}) : undefined);
  const slow = read32(vmm, Register.SLOW);
  const behind = read32(vmm, Register.ID);
  await until(() => first.scratch.calls.includes('slow'));
  void first.server.close();
  await bed.said('is gone');
  const { scratch } = bed.serveScratch();
  t.equal(await behind, SCRATCH_ID);
  t.equal(await slow, 0);
  t.ok(scratch.calls.includes('slow'));
});

t.test('without a server the VMM is answered in time', async (t) => {
  const bed = new RelayBed(t, { holdMs: 100 });
  const { server } = bed.serveScratch();
  const vmm = await bed.vmm();
  await server.close();
  await bed.said('is gone');
  const since = performance.now();
  t.equal(await outcome(read32(vmm, Register.ID)), Errno.ETIMEDOUT);
  const waited = performance.now() - since;
  t.ok(waited > 50 && waited < 2000, `after ${waited} ms`);
  // A VMM that cannot map memory ends itself: these are taken, and done when there is a server.
  const memory = memfd(4096);
  t.teardown(() => memory.close());
  await vmm.dmaMap({ flags: READ_WRITE, offset: 0, address: 0x10000, size: 4096 }, memory);
  await vmm.dmaMap({ flags: READ_WRITE, offset: 0, address: 0x20000, size: 4096 }, memory);
  await vmm.dmaUnmap({ flags: 0, address: 0x20000, size: 4096 });
  const next = bed.serveScratch();
  await bed.said('again');
  t.equal(await read32(vmm, Register.ID), SCRATCH_ID);
  t.same(
    next.scratch.host.memory.regions.map(({ address }) => address),
    [0x10000],
  );
});

t.test('another device is not taken for the one that died', async (t) => {
  const bed = new RelayBed(t, { holdMs: 200 });
  const { server } = bed.serveScratch();
  const vmm = await bed.vmm();
  await server.close();
  const wrong = bed.serveScratch({ stateSize: 8192 });
  await bed.said('size of region 2: 0x1000 here, 0x2000 there');
  t.equal(await outcome(read32(vmm, Register.ID)), Errno.ETIMEDOUT);
  await wrong.server.close();
  bed.serveScratch();
  await bed.said('again');
  t.equal(await read32(vmm, Register.ID), SCRATCH_ID);
});

t.test('a VMM without any server is sent away', async (t) => {
  const bed = new RelayBed(t, { holdMs: 50 });
  t.equal(await outcome(bed.vmm()), Errno.ENOENT);
  t.equal(await outcome(bed.manager()), 'DEVSTATE_E_CONNECTION_CLOSED', 'so is a manager without a VMM');
  bed.serveScratch();
  t.equal(await read32(await bed.vmm(), Register.ID), SCRATCH_ID);
});

t.test('a stopped device that refuses what is no migration', async (t) => {
  const bed = new RelayBed(t);
  const { scratch } = bed.serveScratch();
  const vmm = await bed.vmm();
  const manager = await bed.manager();
  await vmm.regionWrite(PciRegion.CONFIG, 0x3c, Uint8Array.of(0x0b));
  await manager.setState(STOP_COPY);
  // Ours takes it all; what libvfio-user refuses is in test/conformance.
  t.same(await config(vmm, 0x3c, 1), [0x0b]);
  t.same(scratch.takeCalls().includes('quiesce'), true);
  const nowhere = { flags: 0, address: 0x7000, size: 4096 };
  t.equal(await outcome(vmm.dmaUnmap(nowhere)), Errno.ENOENT, 'what is wrong is refused all the same');
  await manager.setState(RUNNING);
  t.equal(await read32(vmm, Register.ID), SCRATCH_ID);
});
