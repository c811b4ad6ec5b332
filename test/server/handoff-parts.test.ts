// SPDX-License-Identifier: Apache-2.0
/** What goes over when a server hands over, part by part, and what keeps it from handing over. */

import { mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Client } from '../../src/client/index.js';
import type { Device, StateRecord } from '../../src/device/index.js';
import { SampleDevice } from '../../src/devices/sample/index.js';
import { type HandoffReport, takeoverPaths } from '../../src/handoff/index.js';
import { DeviceRuntime } from '../../src/runtime/index.js';
import { Server } from '../../src/server/index.js';
import { closeAll } from '../../src/transport/index.js';
import {
  Command,
  encodeRegionAccess,
  IrqSetFlag,
  MigrationState,
  PciIrq,
  REGION_ACCESS_LENGTH,
} from '../../src/wire/index.js';
import { eventfd, MemoryPeer, memfd, signals } from '../support/memory.js';
import { MSIX_VECTORS, Register, ScratchDevice } from '../support/scratch-device.js';
import { resources, Served, serveScratch, until } from '../support/served.js';

/** A word, as bytes. */
function word(value: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value, true);
  return bytes;
}

/** A server of `old`'s device and paths, that waits to take over. */
function successorOf(t: Test, old: Served) {
  const takeover = mkdtempSync(join(old.path, '..', 's'));
  const scratch = new ScratchDevice();
  const log: string[] = [];
  const server = new Server({
    device: new DeviceRuntime(scratch, { name: 'successor' }),
    socketPath: old.path,
    migrationSocketPath: old.migrationPath,
    takeover,
    log: (_level, message) => log.push(message),
  });
  t.teardown(() => server.close());
  return { server, scratch, takeover, log };
}

async function handOver(old: Served, takeover: string, timeouts = {}): Promise<HandoffReport> {
  const manager = await old.manager();
  const [format] = (await manager.formats()) ?? [];
  if (format === undefined) throw new Error('no format');
  const { uuid, version } = format;
  const { handoff: socket } = takeoverPaths(takeover);
  try {
    return await manager.handOver({ socket, format: { uuid, ...version }, timeouts }, 10_000);
  } finally {
    manager.close();
  }
}

/** Reads of the memory that is the device's state. */
async function stateBytes(client: Client, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await client.regionRead(2, 0, bytes);
  return bytes;
}

t.test('state, DMA ranges, notes', async (t) => {
  const before = resources();
  await t.test('hand over', async (t) => {
    const old = serveScratch(t);
    const vmm = await old.vmm();
    const memory = memfd(0x4000);
    // One file in two pieces, one of them for reading.
    await vmm.dmaMap({ flags: 3, offset: 0, address: 0x10000, size: 0x1000 }, memory);
    await vmm.dmaMap({ flags: 1, offset: 0x1000, address: 0x20000, size: 0x1000 }, memory);
    await vmm.regionWrite(2, 0, Uint8Array.of(1, 2, 3, 4));
    const manager = await old.manager();
    await manager.setNote(Uint8Array.of(9, 8, 7));
    manager.close();
    const { server, scratch, takeover } = successorOf(t, old);
    const { fds } = await handOver(old, takeover);
    // VMM, two listeners, state, lease, the file for writing and the one for reading.
    t.equal(fds, 7);
    await old.server.ended;
    t.same(await stateBytes(vmm, 4), Uint8Array.of(1, 2, 3, 4));
    const next = await old.manager();
    t.same(await next.note(), Uint8Array.of(9, 8, 7));
    t.same(await next.dmaMaps(), [
      { address: 0x10000, size: 0x1000, flags: 3 },
      { address: 0x20000, size: 0x1000, flags: 1 },
    ]);
    await next.writeMemory(0x10000, Uint8Array.of(42));
    const there = new Uint8Array(1);
    await next.readMemory(0x10000, there);
    t.same(there, Uint8Array.of(42));
    t.notOk(
      scratch.takeCalls().some((call) => call.startsWith('reset')),
      'no reset',
    );
    memory.close();
    vmm.close();
    next.close();
    await server.close();
  });
  await until(() => resources().fds <= before.fds);
  t.same(resources(), before, 'all files and mappings are gone');
});

t.test('an imagined state is practised with, at both ends, and nothing stays of it', async (t) => {
  const old = serveScratch(t);
  const vmm = await old.vmm();
  await vmm.regionWrite(2, 0, Uint8Array.of(1, 2));
  old.scratch.takeCalls();
  const { scratch, takeover } = successorOf(t, old);
  const imagined = new ScratchDevice();
  imagined.state.memory.fill(0xee);
  const records: StateRecord[] = [];
  for await (const record of imagined.state.save('final')) records.push(record);
  const practised: Device[] = [];
  for (const device of [old.scratch, scratch])
    device.state.practice = () => {
      practised.push(device);
      return records;
    };
  const seen: number[] = [];
  scratch.hook = (step) => {
    if (step === 'save final' || step === 'resume') seen.push(scratch.state.memory[0] ?? -1);
  };
  await handOver(old, takeover);
  t.same(new Set(practised), new Set([old.scratch, scratch]));
  t.same(
    old.scratch.takeCalls().slice(0, 2),
    ['quiesce', 'save final'],
    'the device that serves is left alone',
  );
  t.ok(seen.includes(0xee), 'the successor has saved and loaded it');
  const steps = scratch.takeCalls();
  t.notOk(
    steps.slice(0, steps.indexOf('reset aborted')).includes('resume'),
    'it runs only when it is forgotten',
  );
  t.equal(seen.at(-1), 1);
  t.same(await stateBytes(vmm, 3), Uint8Array.of(1, 2, 0));
});

t.test('eventfds, masks, and what is pending', async (t) => {
  const old = serveScratch(t);
  const vmm = await old.vmm();
  const fds = Array.from({ length: MSIX_VECTORS }, () => eventfd());
  const line = eventfd();
  t.teardown(() => closeAll([...fds, line]));
  await vmm.assignEventfds(PciIrq.MSIX, fds);
  await vmm.assignEventfds(PciIrq.INTX, [line]);
  const act = (action: number, index: number, start: number) =>
    vmm.setIrqs({ flags: IrqSetFlag.DATA_NONE | action, index, start, count: 1 });
  await act(IrqSetFlag.ACTION_MASK, PciIrq.MSIX, 7);
  await vmm.regionWrite(0, Register.RAISE, word(7));
  await vmm.regionWrite(0, Register.INTX, word(1));
  t.equal(signals(line), 1);
  const { takeover } = successorOf(t, old);
  await handOver(old, takeover);
  t.equal(signals(fds[7]!), 0, 'masked still');
  t.equal(signals(line), 0, 'signalled once');
  await act(IrqSetFlag.ACTION_UNMASK, PciIrq.MSIX, 7);
  t.equal(signals(fds[7]!), 1, 'it was pending');
  await act(IrqSetFlag.ACTION_UNMASK, PciIrq.INTX, 0);
  t.equal(signals(line), 1, 'the line is up');
  for (const vector of [0, 39]) {
    await vmm.regionWrite(0, Register.RAISE, word(vector));
    t.equal(signals(fds[vector]!), 1);
  }
});

t.test('commands that come while the device stops are carried out by the successor', async (t) => {
  const old = serveScratch(t);
  const vmm = await old.vmm();
  const memory = memfd(0x1000);
  t.teardown(() => memory.close());
  const { scratch, takeover } = successorOf(t, old);
  const answers: Promise<unknown>[] = [];
  old.scratch.hook = async (step) => {
    if (step !== 'quiesce') return;
    answers.push(vmm.dmaMap({ flags: 3, offset: 0, address: 0, size: 0x1000 }, memory));
    answers.push(vmm.regionWrite(2, 16, Uint8Array.of(5)));
    for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
  };
  const { fds } = await handOver(old, takeover);
  t.equal(fds, 6, 'the memory file of a command that waits is among them');
  await Promise.all(answers);
  t.equal(scratch.state.memory[16], 5);
  t.equal(old.scratch.state.memory[16], 0);
  const manager = await old.manager();
  t.same(await manager.dmaMaps(), [{ address: 0, size: 0x1000, flags: 3 }]);
});

t.test('a message that is half there is waited for', async (t) => {
  const old = serveScratch(t);
  const raw = await old.raw();
  await raw.version();
  const { scratch, takeover } = successorOf(t, old);
  const payload = new Uint8Array(REGION_ACCESS_LENGTH + 1);
  encodeRegionAccess(new DataView(payload.buffer), 0, 3, 2, 1);
  payload[REGION_ACCESS_LENGTH] = 77;
  const bytes = raw.message(Command.REGION_WRITE, payload, { id: 5 });
  raw.send(bytes.subarray(0, 20));
  const handing = handOver(old, takeover);
  await until(() => old.scratch.calls.includes('quiesce'));
  raw.send(bytes.subarray(20));
  await handing;
  t.match(await raw.receive(), { id: 5, error: 0 });
  t.equal(scratch.state.memory[3], 77);
});

t.test('memory by messages, and the twin socket', async (t) => {
  for (const twinSocket of [false, true]) {
    await t.test(twinSocket ? 'on the twin socket' : 'on the connection', async (t) => {
      const old = serveScratch(t);
      const peer = new MemoryPeer();
      peer.put(0, Uint8Array.of(5, 6, 7));
      const vmm = await old.vmm({ dma: peer.handler, capabilities: { twinSocket } });
      await vmm.dmaMap({ flags: 3, offset: 0, address: 0, size: 0x1000 });
      const { takeover } = successorOf(t, old);
      t.equal((await handOver(old, takeover)).fds, twinSocket ? 6 : 5);
      await vmm.regionWrite(0, Register.DMA_LENGTH, word(3));
      await vmm.regionWrite(0, Register.DMA_COMMAND, word(1));
      t.same(await stateBytes(vmm, 3), Uint8Array.of(5, 6, 7));
    });
  }
});

t.test('without a VMM, and with clients that wait', async (t) => {
  const old = serveScratch(t);
  const one = successorOf(t, old);
  await handOver(old, one.takeover);
  const first = await old.vmm();
  const second = old.vmm();
  await first.regionWrite(2, 0, Uint8Array.of(1));
  const two = successorOf(t, old);
  t.equal((await handOver(old, two.takeover)).fds, 6, 'the one that waits is handed over');
  await one.server.ended;
  first.close();
  t.ok(await (await second).deviceInfo());
  t.ok(two.scratch.calls.includes('reset disconnected'), 'the next VMM finds a device that was reset');
});

t.test('the old server continues', async (t) => {
  await t.test('when its VMM leaves on the way', async (t) => {
    const old = serveScratch(t);
    const vmm = await old.vmm();
    const { takeover, server } = successorOf(t, old);
    old.scratch.hook = (step) => {
      if (step === 'quiesce') vmm.close();
    };
    const failed = handOver(old, takeover).then(
      () => 'taken over',
      (error: Error) => error.message,
    );
    // It may notice that before it is done, or the successor does afterwards; either way the next VMM is served.
    if ((await failed) !== 'taken over') await t.rejects(server.ended);
    const next = await old.vmm();
    t.ok(await next.deviceInfo());
  });

  await t.test('while the device is migrated', async (t) => {
    const old = serveScratch(t);
    const manager = await old.manager();
    for (const state of [MigrationState.PRE_COPY, MigrationState.STOP]) {
      await manager.setState(state);
      const { takeover } = successorOf(t, old);
      const message = /phase freeze: the device is being migrated.*; the old server continues/;
      await t.rejects(handOver(old, takeover), { code: 'DEVSTATE_E_HANDOFF', message });
    }
    manager.close();
    const { takeover } = successorOf(t, old);
    const message = /phase freeze: the device is in STOP, not RUNNING/;
    await t.rejects(handOver(old, takeover), { message });
  });

  await t.test('when it cannot practise', async (t) => {
    const old = serveScratch(t);
    old.scratch.state.practice = () => {
      throw new Error('out of practice');
    };
    const message = /phase prepare: .*out of practice; the old server continues/;
    await t.rejects(handOver(old, successorOf(t, old).takeover), { message });
    old.scratch.state.practice = () => [];
    await handOver(old, successorOf(t, old).takeover);
  });

  await t.test('when the device does not hand over what the VMM maps', async (t) => {
    const device = new SampleDevice();
    t.teardown(() => device.close());
    const old = new Served(t, new DeviceRuntime(device, { name: 'sample' }));
    const { takeover } = successorOf(t, old);
    await t.rejects(handOver(old, takeover), {
      message: /phase (prepare|freeze): .*(not offered here|the VMM maps memory of this device)/,
    });
  });

  await t.test('when it does not come to a stop in time, and then hands over all the same', async (t) => {
    const old = serveScratch(t);
    const vmm = await old.vmm();
    let release: () => void = () => {};
    old.scratch.hook = (step) =>
      step === 'quiesce' ? new Promise<void>((resolve) => (release = resolve)) : undefined;
    const message = /phase freeze: not done within 50 ms; the old server continues/;
    await t.rejects(handOver(old, successorOf(t, old).takeover, { freeze: 50 }), { message });
    await vmm.regionWrite(2, 0, Uint8Array.of(3));
    t.notOk(old.scratch.calls.includes('resume'), 'the device has not stopped yet');
    release();
    await until(() => old.scratch.calls.includes('resume'));
    old.scratch.hook = () => {};
    await handOver(old, successorOf(t, old).takeover);
    t.same(await stateBytes(vmm, 1), Uint8Array.of(3));
  });

  await t.test('when saving takes too long', async (t) => {
    const before = resources();
    await t.test('then nothing leaks', async (t) => {
      const old = serveScratch(t);
      const vmm = await old.vmm({ capabilities: { twinSocket: true } });
      let release: () => void = () => {};
      old.scratch.hook = (step) =>
        step.startsWith('save') ? new Promise<void>((resolve) => (release = resolve)) : undefined;
      const { takeover, server } = successorOf(t, old);
      await t.rejects(handOver(old, takeover, { freeze: 50 }), { message: /phase freeze/ });
      old.scratch.hook = () => {};
      release();
      t.ok(await vmm.deviceInfo());
      await t.rejects(server.ended);
    });
    await until(() => resources().fds <= before.fds);
    t.same(resources(), before);
  });

  await t.test('and takes one handoff at a time', async (t) => {
    const old = serveScratch(t);
    const { takeover } = successorOf(t, old);
    // Before the handoff begins: who connects during one waits for its end.
    const other = await old.manager();
    let release: () => void = () => {};
    old.scratch.hook = (step) =>
      step === 'quiesce' ? new Promise<void>((resolve) => (release = resolve)) : undefined;
    const first = handOver(old, takeover);
    await until(() => old.scratch.calls.includes('quiesce'));
    const request = { socket: '/nowhere', format: { uuid: '', major: 1, minor: 0 } };
    await t.rejects(other.handOver(request, 5000), { message: /is being handed over, or ends/ });
    release();
    t.match(await first, { unconfirmed: false });
  });

  await t.test('and refuses what it does not understand', async (t) => {
    const old = serveScratch(t);
    const manager = await old.manager();
    const format = { uuid: 'no uuid', major: 1, minor: 0 };
    await t.rejects(manager.handOver({ socket: '/nowhere', format }, 5000), {
      code: 'DEVSTATE_E_HANDOFF',
      message: /cannot connect to \/nowhere/,
    });
    const broken = { socket: 5, format } as unknown as { socket: string; format: typeof format };
    await t.rejects(manager.handOver(broken, 5000), { message: /the request is wrong at socket/ });
    t.match(await manager.handoffStatus(), { generation: 0, serving: true });
  });
});
