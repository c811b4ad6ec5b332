// SPDX-License-Identifier: Apache-2.0
/** What holds for all commands: order, silence when no reply is wanted, waiting, and who is served when. */

import t from 'tap';
import { Client, type MigrationClient } from '../../src/client/index.js';
import { closeAll } from '../../src/transport/index.js';
import { Command, Errno, FeatureFlag, HeaderFlag, MigrationState } from '../../src/wire/index.js';
import { hex } from '../support/hex.js';
import { eventfd, MemoryPeer, memfd, signals } from '../support/memory.js';
import { access, dmaMap, dmaUnmap, setIrqs, u32, version } from '../support/payloads.js';
import { PlainServed } from '../support/plain-served.js';
import { Register, SCRATCH_ID } from '../support/scratch-device.js';
import { outcome, Served, serveScratch, until } from '../support/served.js';

const { NO_REPLY } = HeaderFlag;
const { STOP, RUNNING, STOP_COPY, PRE_COPY } = MigrationState;
const PROBE_STATE = 2 | FeatureFlag.PROBE;

t.test('No_reply: silence on every command, good or bad, and the order is kept', async (t) => {
  const served = serveScratch(t);
  const fd = memfd(0x1000);
  t.teardown(() => fd.close());
  const good: [number, Uint8Array][] = [
    [Command.DMA_MAP, dmaMap(0, 0x1000)],
    [Command.DMA_UNMAP, dmaUnmap(0, 0x1000)],
    [Command.DEVICE_GET_INFO, u32(16, 0, 0, 0)],
    [Command.DEVICE_GET_REGION_INFO, u32(32, 0, 0, 0, 0, 0, 0, 0)],
    [Command.DEVICE_GET_REGION_IO_FDS, u32(16, 0, 0, 0)],
    [Command.DEVICE_GET_IRQ_INFO, u32(16, 0, 0, 0)],
    [Command.DEVICE_SET_IRQS, setIrqs(0x21, 2, 0, 0)],
    [Command.REGION_READ, access(0, 0, 4)],
    [Command.REGION_WRITE, access(Register.KEPT, 0, 4, u32(7))],
    [Command.REGION_WRITE_MULTI, hex('0000000000000000')],
    [Command.DEVICE_RESET, new Uint8Array(0)],
    [Command.DEVICE_FEATURE, u32(8, PROBE_STATE)],
    [Command.DEVICE_FEATURE, u32(16, 2 | FeatureFlag.SET, PRE_COPY, 0)],
    [Command.MIG_DATA_READ, u32(108, 100)],
    [Command.DEVICE_FEATURE, u32(16, 2 | FeatureFlag.SET, MigrationState.RESUMING, 0)],
    [Command.MIG_DATA_WRITE, u32(8, 0)],
    [Command.DEVICE_FEATURE, u32(16, 2 | FeatureFlag.SET, STOP, 0)],
    [Command.DEVICE_RESET, new Uint8Array(0)],
  ];
  const client = await served.raw();
  client.send(client.message(Command.VERSION, version({ writeMultiple: true }), { flags: NO_REPLY }));
  for (const [command, payload] of good) {
    const fds = command === Command.DMA_MAP ? [fd] : [];
    client.send(client.message(command, payload, { flags: NO_REPLY }), fds);
    client.send(client.message(command, new Uint8Array(3), { flags: NO_REPLY }));
    const reply = await client.call(Command.DEVICE_GET_INFO, u32(16, 0, 0, 0));
    t.equal(reply.command, Command.DEVICE_GET_INFO, `nothing before the next reply after command ${command}`);
    t.equal(reply.payload.length, 16);
  }
  for (const command of [0, 11, 12, 14, 19, 9999])
    client.send(client.message(command, u32(0), { flags: NO_REPLY }));
  t.equal(
    (await client.call(Command.REGION_READ, access(0, 0, 4))).command,
    Command.REGION_READ,
    'unknown ones too',
  );
});

t.test('a thousand commands ahead', async (t) => {
  const served = serveScratch(t);
  const client = await served.raw();
  await client.version();
  const messages: Uint8Array[] = [];
  for (let i = 0; i < 1000; i++) {
    const write = i % 2 === 0;
    const payload = write ? access(Register.KEPT, 0, 4, u32(i)) : access(Register.KEPT, 0, 4);
    messages.push(client.message(write ? Command.REGION_WRITE : Command.REGION_READ, payload, { id: i }));
  }
  client.send(Buffer.concat(messages));
  for (let i = 0; i < 1000; i++) {
    const reply = await client.receive();
    if (reply?.id !== i || reply.error !== 0) t.fail(`reply ${i} is ${reply?.id}`);
    if (i % 2 === 1 && Buffer.from(reply!.payload).readUInt32LE(16) !== i - 1)
      t.fail(`read ${i} came out of turn`);
  }
  t.pass('each answered in its turn');
});

t.test('a command that takes its time: what follows waits, whole or in halves', async (t) => {
  const served = serveScratch(t);
  const client = await served.raw();
  await client.version();
  for (const cut of [1, 8, 15, 16, 17, 31]) {
    const finish: (() => void)[] = [];
    served.scratch.hook = (step) =>
      step === 'slow' ? new Promise<void>((resolve) => finish.push(resolve)) : undefined;
    const slow = (id: number): Uint8Array =>
      client.message(Command.REGION_READ, access(Register.SLOW, 0, 4), { id });
    const last = client.message(Command.REGION_WRITE, access(Register.KEPT, 0, 4, u32(cut)), { id: 4 });
    client.send(
      Buffer.concat([
        slow(1),
        slow(2),
        client.message(Command.REGION_READ, access(0, 0, 4), { id: 3 }),
        last.subarray(0, cut),
      ]),
    );
    await until(() => finish.length === 1);
    await new Promise(setImmediate);
    finish[0]!();
    await until(() => finish.length === 2);
    finish[1]!();
    t.equal((await client.receive())?.id, 1);
    t.equal((await client.receive())?.id, 2);
    t.equal((await client.receive())?.id, 3);
    client.send(last.subarray(cut));
    const reply = await client.receive();
    t.equal(reply?.id, 4, `half a message of ${cut} bytes is not lost`);
    t.equal(reply?.error, 0);
  }
});

t.test('a device that needs memory by messages in the middle of an access gets it', async (t) => {
  const served = serveScratch(t);
  const peer = new MemoryPeer();
  peer.put(
    0x1ff0,
    Uint8Array.from({ length: 64 }, (_, i) => i),
  );
  const vmm = await served.vmm({ dma: peer.handler });
  await vmm.dmaMap({ flags: 3, offset: 0, address: 0x1000, size: 0x2000 });
  await vmm.regionWrite(0, Register.DMA_ADDRESS, u32(0x1ff0, 0, 64));
  const done = vmm.regionWrite(0, Register.DMA_COMMAND, u32(1));
  const behind = new Uint8Array(64);
  const read = vmm.regionRead(2, 0, behind);
  await Promise.all([done, read]);
  t.strictSame(behind, peer.bytes(0x1ff0, 64), 'the command behind it sees what it did');
  await vmm.regionWrite(2, 0, new Uint8Array(64).fill(0xcc));
  await vmm.regionWrite(0, Register.DMA_COMMAND, u32(2));
  t.strictSame(peer.bytes(0x1ff0, 64), new Uint8Array(64).fill(0xcc));
  t.equal(peer.reads + peer.writes, 2);
});

t.test('transfers by messages are cut to what the client takes', async (t) => {
  const served = serveScratch(t, { stateSize: 4096 });
  const peer = new MemoryPeer();
  const vmm = await served.vmm({ dma: peer.handler, capabilities: { maxDataXferSize: 100 } });
  peer.put(0, new Uint8Array(1000).fill(3));
  await vmm.dmaMap({ flags: 3, offset: 0, address: 0, size: 0x1000 });
  await vmm.regionWrite(0, Register.DMA_ADDRESS, u32(0, 0, 1000, 1));
  t.equal(peer.reads, 0, 'a write that only ends at the command register does not start it');
  await vmm.regionWrite(0, Register.DMA_COMMAND, u32(1));
  t.equal(peer.reads, 10);
  const back = new Uint8Array(1000);
  await vmm.regionRead(2, 0, back);
  t.ok(back.every((byte) => byte === 3));
});

t.test('a client that refuses, or has nothing to give', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  await vmm.dmaMap({ flags: 3, offset: 0, address: 0, size: 0x1000 });
  await vmm.regionWrite(0, Register.DMA_ADDRESS, u32(0, 0, 16));
  t.equal(await outcome(vmm.regionWrite(0, Register.DMA_COMMAND, u32(1))), Errno.ENOSYS);
  t.equal(await outcome(vmm.regionWrite(0, Register.DMA_COMMAND, u32(2))), Errno.ENOSYS);
  await vmm.regionWrite(0, Register.DMA_ADDRESS, u32(0x5000));
  t.equal(await outcome(vmm.regionWrite(0, Register.DMA_COMMAND, u32(1))), Errno.EFAULT, 'not mapped');
});

t.test('a client that leaves while its memory is wanted, and the next is served', async (t) => {
  const served = serveScratch(t);
  for (const twinSocket of [false, true]) {
    const client = await served.raw();
    await client.version({ twinSocket });
    await client.call(Command.DMA_MAP, dmaMap(0, 0x1000));
    await client.call(Command.REGION_WRITE, access(Register.DMA_ADDRESS, 0, 12, u32(0, 0, 2048)));
    client.send(client.message(Command.REGION_WRITE, access(Register.DMA_COMMAND, 0, 4, u32(1))));
    if (!twinSocket) t.equal((await client.receive())?.command, Command.DMA_READ);
    else await new Promise(setImmediate);
    client.close();
    const next = await served.vmm();
    await next.regionRead(0, 0, new Uint8Array(4));
    next.close();
  }
});

t.test('an unmap waits for the transfer under way', async (t) => {
  const served = serveScratch(t);
  const client = await served.raw();
  await client.version();
  const manager = await served.manager();
  await client.call(Command.DMA_MAP, dmaMap(0, 0x1000));
  // The transfer is a manager's, so that the VMM's own commands continue.
  const reading = manager.readMemory(0, new Uint8Array(8));
  const request = await client.receive();
  t.equal(request?.command, Command.DMA_READ);
  client.send(client.message(Command.DMA_UNMAP, dmaUnmap(0, 0x1000), { id: 77 }));
  const looker = await served.manager();
  await until(async () => (await looker.dmaMaps()).length === 0);
  const data = Buffer.concat([Buffer.from(request!.payload), Buffer.alloc(8, 5)]);
  client.send(client.message(Command.DMA_READ, data, { id: request!.id, flags: HeaderFlag.TYPE_REPLY }));
  const reply = await client.receive();
  t.equal(reply?.id, 77);
  t.equal(reply?.error, 0);
  await reading;
});

t.test('the twin socket', async (t) => {
  const served = serveScratch(t);
  const peer = new MemoryPeer();
  peer.put(0, Uint8Array.of(5, 6, 7));
  const vmm = await served.vmm({ dma: peer.handler, capabilities: { twinSocket: true } });
  t.equal(vmm.version.capabilities.twinSocket, true);
  await vmm.dmaMap({ flags: 3, offset: 0, address: 0, size: 0x1000 });
  await vmm.regionWrite(0, Register.DMA_ADDRESS, u32(0, 0, 3));
  await vmm.regionWrite(0, Register.DMA_COMMAND, u32(1));
  const back = new Uint8Array(3);
  await vmm.regionRead(2, 0, back);
  t.strictSame(back, Uint8Array.of(5, 6, 7));
  vmm.close();

  const raw = await served.raw();
  raw.keepFds = true;
  const reply = await raw.version({ twinSocket: true });
  t.equal(reply.fds.length, 1);
  closeAll(reply.fds);
  await raw.call(Command.DMA_MAP, dmaMap(0, 0x1000));
  await raw.call(Command.REGION_WRITE, access(Register.DMA_ADDRESS, 0, 12, u32(0, 0, 8)));
  const refused = await raw.call(Command.REGION_WRITE, access(Register.DMA_COMMAND, 0, 4, u32(1)));
  t.equal(refused.error, Errno.ENOTCONN, 'its other end is gone: the transfer fails at once');
  raw.close();

  const none = await served.raw();
  none.keepFds = true;
  t.equal((await none.version({ twinSocket: true, maxMsgFds: 0 })).fds.length, 0, 'not for who takes no fds');
});

t.test('a reply that was not asked for ends the connection', async (t) => {
  const served = serveScratch(t);
  for (const flags of [HeaderFlag.TYPE_REPLY, HeaderFlag.TYPE_REPLY | HeaderFlag.ERROR]) {
    const client = await served.raw();
    await client.version();
    client.send(client.message(Command.DMA_READ, new Uint8Array(16), { flags }));
    await client.closed();
    const next = await served.vmm();
    const id = new Uint8Array(4);
    await next.regionRead(0, 0, id);
    t.equal(Buffer.from(id).readUInt32LE(0), SCRATCH_ID, 'and the next client is served');
    next.close();
  }
});

t.test('when a VMM leaves, the next finds a fresh device', async (t) => {
  const served = serveScratch(t);
  const fd = memfd(0x1000);
  const line = eventfd();
  t.teardown(() => closeAll([fd, line]));
  const manager = await served.manager();
  const first = await served.vmm();
  await first.dmaMap({ flags: 3, offset: 0, address: 0, size: 0x1000 }, fd);
  await first.assignEventfds(2, [line]);
  await first.regionWrite(0, Register.KEPT, u32(1));
  const second = served.vmm();
  await new Promise(setImmediate);
  first.close();
  const vmm = await second;
  t.strictSame(await manager.dmaMaps(), []);
  t.equal(await manager.state(), RUNNING);
  const kept = new Uint8Array(4);
  await vmm.regionRead(0, Register.KEPT, kept);
  t.strictSame(kept, new Uint8Array(4));
  await vmm.regionWrite(0, Register.RAISE, u32(0));
  t.equal(signals(line), 0);
});

t.test('a VMM that leaves a stopped device: the next one has it running', async (t) => {
  const served = serveScratch(t);
  for (const state of [STOP, STOP_COPY, PRE_COPY] as const) {
    const first = await served.vmm();
    const manager = await served.manager();
    await manager.setState(state);
    manager.close();
    const looker = await served.manager();
    first.close();
    const next = await served.vmm();
    t.equal(await looker.state(), RUNNING, `after ${state}`);
    t.equal(served.scratch.running, true);
    next.close();
    looker.close();
  }
});

t.test('a reset that fails does not keep the next VMM out', async (t) => {
  const served = serveScratch(t);
  const fd = memfd(0x1000);
  t.teardown(() => fd.close());
  const first = await served.vmm();
  await first.dmaMap({ flags: 3, offset: 0, address: 0, size: 0x1000 }, fd);
  served.scratch.hook = (step) => {
    if (step.startsWith('reset')) throw new Error('stuck');
  };
  first.close();
  const next = await served.vmm();
  served.scratch.hook = () => {};
  await next.dmaMap({ flags: 3, offset: 0, address: 0, size: 0x1000 }, fd);
  t.match(served.log.join('\n'), /stuck/, 'the log says so');
});

t.test('a client that says nothing is sent away, and those who wait are served', async (t) => {
  const served = serveScratch(t, { versionTimeoutMs: 50 });
  const silent = [await served.raw(), await served.raw(), await served.raw(served.migrationPath)];
  const vmm = await served.vmm();
  t.equal(silent[0]!.isClosed, true);
  await Promise.all(silent.map((client) => client.closed()));
  await vmm.deviceInfo();
});

t.test('several managers look, one drives', async (t) => {
  const served = serveScratch(t);
  const first = await served.manager();
  const second = await served.manager();
  await first.setState(PRE_COPY);
  t.equal(await second.state(), PRE_COPY);
  t.equal(await outcome(second.setState(STOP)), Errno.EBUSY);
  t.equal(await outcome(second.readData(new Uint8Array(8))), Errno.EBUSY);
  t.equal(await outcome(second.reset()), Errno.EBUSY);
  await first.startLogging({ pageSize: 4096, ranges: [] });
  t.equal(await outcome(second.stopLogging()), Errno.EBUSY);
  first.close();
  await until(async () => (await second.state()) === RUNNING);
  await second.startLogging({ pageSize: 4096, ranges: [] });
  await second.setState(STOP);
  const many = await Promise.all(Array.from({ length: 15 }, () => served.manager()));
  t.equal(await many[14]!.state(), STOP);
  await t.rejects(
    served.manager(),
    { code: 'DEVSTATE_E_CONNECTION_CLOSED', message: /16 managers are connected and at work; end one/ },
    'sixteen, and no more',
  );
});

t.test(
  'silent managers make room for another one, the longest silent first, the one that drives never',
  async (t) => {
    const served = serveScratch(t);
    const driver = await served.manager();
    await driver.setState(PRE_COPY);
    const silent = await Promise.all(Array.from({ length: 15 }, () => served.manager()));
    const last = silent.pop()!;
    const active = setInterval(() => void last.state().catch(() => {}), 20);
    t.teardown(() => clearInterval(active));
    let another: MigrationClient | undefined;
    await until(async () => {
      another = await served.manager().catch(() => undefined);
      return another !== undefined;
    });
    t.equal(await another!.state(), PRE_COPY);
    await Promise.race(silent.map(({ client }) => client.closed()));
    const gone = silent.filter(({ client }) => client.isClosed);
    t.equal(gone.length, 1);
    await t.rejects(gone[0]!.state(), {
      code: 'DEVSTATE_E_CONNECTION_CLOSED',
      message: /silent the longest of 16 managers.*connect again/,
    });
    t.equal(await driver.state(), PRE_COPY, 'the one that drives');
    t.equal(await last.state(), PRE_COPY, 'the one that asks');
  },
);

t.test('many devices in one process', async (t) => {
  const all = Array.from({ length: 10 }, (_, i) => ({ i, served: serveScratch(t, { parameter: i }) }));
  await Promise.all(
    all.map(async ({ i, served }) => {
      const vmm = await served.vmm();
      const manager = await served.manager();
      await vmm.regionWrite(0, Register.KEPT, u32(i));
      if (i % 2 === 0) await manager.setState(STOP);
      const back = new Uint8Array(4);
      await vmm.regionRead(0, Register.KEPT, back);
      t.equal(Buffer.from(back).readUInt32LE(0), i);
      t.equal((await manager.description())?.model.parameters.flavour, i);
      t.equal(await manager.state(), i % 2 === 0 ? STOP : RUNNING);
    }),
  );
});

t.test('a device without migration', async (t) => {
  const served = new Served(t, new PlainServed([{ size: 8, flags: 1 }]));
  const vmm = await served.vmm();
  const manager = await served.manager();
  t.equal(await outcome(manager.flags()), Errno.ENOTTY);
  t.equal(await outcome(manager.setState(STOP)), Errno.ENOTTY);
  t.equal(await outcome(manager.readData(new Uint8Array(8))), Errno.ENOTTY);
  t.equal(await outcome(manager.writeData(new Uint8Array(8))), Errno.ENOTTY);
  t.equal(await outcome(vmm.regionWrite(0, 0, u32(1))), Errno.EINVAL, 'a region that is read only');
  await manager.reset();
  t.equal(await outcome(manager.description()), 'DEVSTATE_E_PROTOCOL', 'what is no description');
});

t.test('a server that closes ends everything, once the device has been told', async (t) => {
  const plain = new PlainServed([{ size: 8, flags: 3 }]);
  const served = new Served(t, plain);
  const vmm = await served.vmm();
  let told = false;
  plain.leaving = async () => {
    await new Promise(setImmediate);
    told = true;
  };
  await served.server.close();
  t.equal(told, true);
  await vmm.closed();
  t.match(await outcome(Client.connect(served.path)), /DEVSTATE_E_CONNECT/);
});
