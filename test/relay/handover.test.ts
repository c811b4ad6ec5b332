// SPDX-License-Identifier: Apache-2.0
/** A relay that hands over to another one: what goes over, what stays when it fails, and what is left where. */

import t from 'tap';
import type { Client } from '../../src/client/index.js';
import { BLOCK_BYTES, BlockWriter, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { takeoverPaths } from '../../src/handoff/index.js';
import { closeAll, type Fd, Listener } from '../../src/transport/index.js';
import {
  Command,
  DmaMapFlag,
  Errno,
  IrqSetFlag,
  MigrationState,
  PciIrq,
  PciRegion,
} from '../../src/wire/index.js';
import { TestBed } from '../guest-driver/served-nvme.js';
import { eventfd, MemoryPeer, memfd, signals } from '../support/memory.js';
import { Register, SCRATCH_ID } from '../support/scratch-device.js';
import { outcome, resources, until } from '../support/served.js';
import { RelayBed } from './support.js';

const READ_WRITE = DmaMapFlag.READ | DmaMapFlag.WRITE;
const BLOCKS = 256;

async function read32(client: Client, offset: number): Promise<number> {
  const bytes = new Uint8Array(4);
  await client.regionRead(0, offset, bytes);
  return new DataView(bytes.buffer).getUint32(0, true);
}

for (const shareMemory of [true, false]) {
  t.test(`a guest that writes, memory ${shareMemory ? 'shared' : 'by messages'}`, async (t) => {
    const bed = new TestBed(t, BLOCKS * BLOCK_BYTES);
    const { socketPath } = await bed.serve();
    const relays = new RelayBed(t, { serverPath: socketPath });
    const machine = await GuestMachine.start(relays.listenPath, {
      memoryBytes: 8 * 1024 * 1024,
      shareMemory,
    });
    const driver = await NvmeDriver.start(machine, { queues: 2, queueEntries: 16 });
    t.teardown(() => {
      driver.detach();
      machine.close();
    });
    const load = new BlockWriter(driver, { blocks: BLOCKS, depth: 12 });
    let old = relays.relay;
    const pauses: number[] = [];
    for (let i = 1; i <= 8; i++) {
      await load.progress(50);
      const next = relays.successor();
      t.match(await relays.handOver(next.takeover), { unconfirmed: false });
      await old.ended;
      await old.close();
      old = next;
      const { generation, pauseMs = Number.NaN } = await relays.status();
      t.equal(generation, i);
      pauses.push(pauseMs);
    }
    await load.progress(50);
    // The last of them has all that a server needs.
    const next = await bed.serve({ incoming: true });
    await old.switchTo(next.socketPath, true);
    await load.progress(50);
    await load.stop();
    t.ok(load.checkImage(bed.content()) > 50, `${load.written} writes: the image is what was written`);
    t.equal(await load.readBack(), BLOCKS);
    t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
    t.comment(`paused ${pauses.map((ms) => ms.toFixed(1)).join(', ')} ms; longest ${load.longestMs} ms`);
  });
}

/** Hands over to a new relay, and waits for the end of the old one. */
async function succeed(bed: RelayBed, old = bed.relay): Promise<ReturnType<RelayBed['successor']>> {
  const next = bed.successor();
  await bed.handOver(next.takeover);
  await old.ended;
  await old.close();
  return next;
}

t.test('what the VMM has set up, for the servers to come', async (t) => {
  const before = resources();
  const bed = new RelayBed(t);
  const first = bed.serveScratch();
  const vmm = await bed.vmm();
  const [memory, irq] = [memfd(8192), eventfd()];
  await vmm.dmaMap({ flags: READ_WRITE, offset: 4096, address: 0x10000, size: 4096 }, memory);
  await vmm.dmaMap({ flags: READ_WRITE, offset: 0, address: 0x40000, size: 4096 });
  const trigger = { flags: IrqSetFlag.DATA_EVENTFD | IrqSetFlag.ACTION_TRIGGER, index: PciIrq.MSIX };
  await vmm.setIrqs({ ...trigger, start: 7, count: 1 }, { fds: [irq] });
  await vmm.setIrqs({ ...trigger, start: 8, count: 1 }, { fds: [irq] });
  const mask = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_MASK;
  await vmm.setIrqs({ flags: mask, index: PciIrq.MSIX, start: 8, count: 1 });
  await vmm.regionWrite(PciRegion.CONFIG, 0x10, Uint8Array.of(0, 0xc0, 0xbf, 0xfe));
  await vmm.regionWrite(PciRegion.CONFIG, 0x04, Uint8Array.of(0x06, 0x01));
  const manager = await bed.manager();
  await manager.setNote(Uint8Array.of(1, 2, 3));
  first.scratch.takeCalls();

  const next = await succeed(bed);
  await manager.client.closed();
  t.equal(await read32(vmm, Register.ID), SCRATCH_ID);
  t.same(first.scratch.takeCalls(), [], 'the server does not');
  t.same(await (await bed.manager()).note(), Uint8Array.of(1, 2, 3));
  t.ok(next.isAttached);

  await first.server.close();
  await bed.said('is gone');
  const { scratch } = bed.serveScratch();
  t.equal(await read32(vmm, Register.ID), SCRATCH_ID);
  t.same(
    scratch.host.memory.regions.map(({ address }) => address),
    [0x10000, 0x40000],
  );
  const bytes = new Uint8Array(6);
  await vmm.regionRead(PciRegion.CONFIG, 0x04, bytes);
  t.same([...bytes.subarray(0, 2)], [0x06, 0x01]);
  scratch.host.interrupts.triggerMsix(8);
  t.equal(signals(irq), 0, 'masked');
  scratch.host.interrupts.triggerMsix(7);
  t.equal(signals(irq), 1);
  const marked = Uint8Array.of(1, 2, 3, 4);
  scratch.host.memory.write(0x10000, marked);
  const seen = new Uint8Array(4);
  await (await bed.manager()).readMemory(0x10000, seen);
  t.same(seen, marked);

  memory.close();
  irq.close();
  vmm.close();
  await bed.said('the VMM has left');
  await next.close();
  await bed.servers.at(-1)!.server.close();
  await until(() => resources().fds === before.fds);
  t.same(resources(), before, 'nothing is left');
});

t.test('what is under way', async (t) => {
  const bed = new RelayBed(t);
  const { scratch } = bed.serveScratch();
  const remote = new MemoryPeer();
  let answer: () => void = () => {};
  remote.before = () =>
    new Promise((resolve) => {
      answer = resolve;
    });
  const vmm = await bed.vmm({ dma: remote.handler });
  await vmm.dmaMap({ flags: READ_WRITE, offset: 0, address: 0x20000, size: 4096 });
  let release: () => void = () => {};
  scratch.hook = (step) =>
    step === 'slow'
      ? new Promise((resolve) => {
          release = resolve;
        })
      : undefined;
  const word = (value: number) => Uint8Array.of(value, 0, 0, 0);
  const slow = read32(vmm, Register.SLOW);
  void vmm.regionWrite(0, Register.KEPT, word(9), { noReply: true });
  const behind = read32(vmm, Register.KEPT);
  await until(() => scratch.calls.includes('slow'));
  let current = await succeed(bed);
  release();
  t.same(await Promise.all([slow, behind]), [0, 9], 'the answers find the VMM');

  // A command of the server that the VMM answers to the next relay.
  remote.put(0x20000, Uint8Array.of(5, 6, 7, 8));
  await vmm.regionWrite(0, Register.DMA_ADDRESS, word(0));
  await vmm.regionWrite(0, Register.DMA_ADDRESS, Uint8Array.of(0, 0, 2, 0, 0, 0, 0, 0));
  await vmm.regionWrite(0, Register.DMA_LENGTH, word(4));
  const transfer = vmm.regionWrite(0, Register.DMA_COMMAND, word(1));
  await until(() => remote.reads > 0);
  current = await succeed(bed, current);
  answer();
  await transfer;
  t.same(scratch.state.memory.subarray(0, 4), Uint8Array.of(5, 6, 7, 8));

  // A request whose server dies is made again by the relay that took it over.
  const lost = read32(vmm, Register.SLOW);
  await until(() => scratch.calls.filter((step) => step === 'slow').length === 2);
  current = await succeed(bed, current);
  void bed.servers[0]!.server.close();
  await bed.said('is gone');
  const next = bed.serveScratch();
  t.equal(await lost, 0);
  t.ok(next.scratch.calls.includes('slow'));
  release();
});

t.test('without a server: the successor looks for one, and keeps the time', async (t) => {
  const bed = new RelayBed(t, { holdMs: 300 });
  const { server } = bed.serveScratch();
  const vmm = await bed.vmm();
  await server.close();
  await bed.said('is gone');
  const since = performance.now();
  const late = outcome(read32(vmm, Register.ID));
  let current = await succeed(bed);
  t.equal(await late, Errno.ETIMEDOUT);
  const waited = performance.now() - since;
  t.ok(waited > 250 && waited < 2000, `after ${waited} ms`);
  const memory = memfd(4096);
  t.teardown(() => memory.close());
  await vmm.dmaMap({ flags: READ_WRITE, offset: 0, address: 0x10000, size: 4096 }, memory);
  current = await succeed(bed, current);
  const wrong = bed.serveScratch({ stateSize: 8192 });
  await bed.said('size of region 2: 0x1000 here, 0x2000 there');
  await wrong.server.close();
  const { scratch } = bed.serveScratch();
  await bed.said('again');
  t.equal(await read32(vmm, Register.ID), SCRATCH_ID);
  t.same(
    scratch.host.memory.regions.map(({ address }) => address),
    [0x10000],
  );
  t.ok(current.isAttached);
});

t.test('with too many requests that wait for a server', async (t) => {
  const bed = new RelayBed(t, { holdMs: 60_000 });
  const { server } = bed.serveScratch();
  const vmm = await bed.vmm();
  await server.close();
  await bed.said('is gone');
  const reads = Array.from({ length: 1025 }, () => read32(vmm, Register.ID));
  // As long as they are in the VMM's socket, which goes over, they are not in the way.
  let refusal: Error | undefined;
  while (refusal === undefined) {
    const next = bed.successor();
    await bed.handOver(next.takeover).catch((error: Error) => {
      refusal = error;
    });
    if (refusal !== undefined) await next.close();
  }
  t.match(
    refusal.message,
    /phase freeze: 1025 requests of the VMM wait .*at most 1024 go over.*the old relay continues/,
  );
  bed.serveScratch();
  t.ok(
    (await Promise.all(reads)).every((id) => id === SCRATCH_ID),
    'all are answered',
  );
  await bed.handOver(bed.successor().takeover);
});

t.test('without a VMM, with one that has said nothing yet, and with VMMs that wait', async (t) => {
  const bed = new RelayBed(t);
  bed.serveScratch();
  let current = await succeed(bed);
  const first = await bed.vmm();
  const second = bed.vmm();
  current = await succeed(bed, current);
  t.equal(await read32(first, Register.ID), SCRATCH_ID);
  first.close();
  t.equal(await read32(await second, Register.ID), SCRATCH_ID, 'its VERSION was in the socket');
  (await second).close();
  await until(() => !current.isAttached);
  const raw = await bed.raw();
  await bed.said('a VMM has connected');
  current = await succeed(bed, current);
  t.equal((await raw.call(Command.DEVICE_GET_INFO, new Uint8Array(16))).error, Errno.EINVAL);
  raw.close();
  t.equal(await read32(await bed.vmm(), Register.ID), SCRATCH_ID);
});

t.test('the old relay continues', async (t) => {
  const bed = new RelayBed(t);
  const { scratch } = bed.serveScratch();
  const vmm = await bed.vmm();
  const manager = await bed.manager();
  await manager.note();
  const steady = resources();
  const attempt = async (
    what: string,
    message: RegExp,
    options: Parameters<RelayBed['successor']>[0] = {},
    timeouts: Record<string, number> = {},
  ): Promise<void> => {
    const next = bed.successor(options);
    await t.rejects(bed.handOver(next.takeover, timeouts), { message }, what);
    await next.close();
    await t.rejects(next.ended, { code: 'DEVSTATE_E_HANDOFF' }, what);
    t.equal(await read32(vmm, Register.ID), SCRATCH_ID, what);
    t.match(await bed.status(), { generation: 0, serving: true }, what);
    await manager.note();
    await until(() => resources().fds <= steady.fds);
    t.same(resources(), steady, what);
  };
  const others = {
    listenPath: '--listen',
    controlPath: '--control',
    migrationSocketPath: '--migration-socket',
  };
  for (const [option, name] of Object.entries(others))
    await attempt(
      name,
      new RegExp(
        `phase prepare: the relay to be replaced has ${name} .*start it with the same; the old relay continues`,
      ),
      {
        [option]: `${bed.folder}/other`,
      },
    );

  await manager.setState(MigrationState.STOP_COPY);
  await attempt('a migration', /STOP_COPY: a migration is under way/);
  await manager.setState(MigrationState.RUNNING);

  let release: () => void = () => {};
  scratch.hook = () =>
    new Promise((resolve) => {
      release = resolve;
    });
  const stopping = manager.setState(MigrationState.STOP_COPY);
  await until(() => scratch.calls.includes('quiesce'));
  const next = bed.successor();
  const waits = { message: /phase freeze: not done within 100 ms; the old relay continues/ };
  await t.rejects(bed.handOver(next.takeover, { freeze: 100 }), waits, "a manager's request is under way");
  await next.close();
  scratch.hook = () => {};
  release();
  await stopping;
  await manager.setState(MigrationState.RUNNING);

  // A successor that says nothing, and what is refused meanwhile.
  const accepted: Fd[] = [];
  const mute = Listener.listen(takeoverPaths(bed.folder).handoff, (fd) => accepted.push(fd));
  const mutely = bed.handOver(bed.folder, { prepare: 200 });
  await until(() => accepted.length > 0);
  const busy = { message: /itself is being replaced already/ };
  await t.rejects(bed.relay.switchTo(bed.serverPath, false), busy);
  await t.rejects(bed.handOver(next.takeover), busy);
  await t.rejects(mutely, { message: /phase prepare: not done within 200 ms; the old relay continues/ });
  mute.close();
  closeAll(accepted);
  t.equal(await read32(vmm, Register.ID), SCRATCH_ID);
});
