// SPDX-License-Identifier: Apache-2.0
/** The migration engine over a real device: what each arc does, who may drive, and what those who leave leave behind. */

import t from 'tap';
import { openBacking } from '../../src/runtime/backing.js';
import { DmaTable } from '../../src/runtime/dma-table.js';
import { EnginePort } from '../../src/runtime/engine-port.js';
import { journalOfNothing } from '../../src/runtime/host-journal.js';
import { InterruptTable } from '../../src/runtime/interrupt-table.js';
import { MigrationEngine } from '../../src/runtime/migration-engine.js';
import type { MigrationPort } from '../../src/server/index.js';
import { Errno, MigrationState, migrationStateName, RequestError } from '../../src/wire/index.js';
import { refusal } from '../support/hex.js';
import { MemoryPeer, memfd } from '../support/memory.js';
import { MSIX_VECTORS, ScratchDevice, type ScratchOptions } from '../support/scratch-device.js';
import { outcome } from '../support/served.js';

const { ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P } = MigrationState;
/** Every state that can be asked for. */
const TARGETS = [STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P];
const VMM = new MemoryPeer();

function engineOf(options: ScratchOptions = {}) {
  const device = new ScratchDevice(options);
  const memory = new DmaTable();
  const interrupts = new InterruptTable([1, 0, MSIX_VECTORS, 1, 1]);
  device.attach({ memory, messages: VMM, interrupts, journal: journalOfNothing(memory), log: () => {} });
  const engine = new MigrationEngine(device, memory, interrupts);
  return { device, memory, interrupts, engine };
}

async function readAll(port: MigrationPort, size = 1000): Promise<Buffer> {
  const stream: Uint8Array[] = [];
  for (;;) {
    const parts = await port.read(size);
    if (parts.length === 0) return Buffer.concat(stream);
    stream.push(...parts);
  }
}

/** What a stopped device of these options saves. */
async function blobOf(options: ScratchOptions = {}, fill = 0x5a): Promise<Buffer> {
  const { device, engine } = engineOf(options);
  device.state.memory.fill(fill);
  const port = new EnginePort(engine);
  await port.setState(STOP_COPY);
  return readAll(port);
}

/** Steps of the device that a test expects; a check of its own state at the begin of a load is the engine's affair. */
function steps(device: ScratchDevice): string[] {
  return device.takeCalls().filter((step) => !/^save|^commit/.test(step));
}

t.test('every arc', async (t) => {
  const arcs: [MigrationState, MigrationState, string[]][] = [
    [RUNNING, RUNNING_P2P, ['quiesce']],
    [RUNNING_P2P, RUNNING, ['resume']],
    [RUNNING, PRE_COPY, []],
    [PRE_COPY, RUNNING, []],
    [PRE_COPY, PRE_COPY_P2P, ['quiesce']],
    [PRE_COPY_P2P, PRE_COPY, ['resume']],
    [RUNNING_P2P, PRE_COPY_P2P, []],
    [PRE_COPY_P2P, RUNNING_P2P, []],
    [PRE_COPY_P2P, STOP_COPY, ['releaseExclusive']],
    [RUNNING_P2P, STOP, []],
    [STOP, RUNNING_P2P, []],
    [STOP, STOP_COPY, ['releaseExclusive']],
    [STOP_COPY, STOP, []],
    [STOP, RESUMING, []],
  ];
  for (const [from, to, expected] of arcs) {
    const { device, engine } = engineOf();
    const port = new EnginePort(engine);
    await port.setState(from);
    device.takeCalls();
    await port.setState(to);
    t.strictSame(steps(device), expected, `${migrationStateName(from)} → ${migrationStateName(to)}`);
    t.equal(port.state, to);
    t.equal(device.running, to === RUNNING || to === PRE_COPY, 'runs or does not');
  }
});

t.test('RESUMING → STOP takes the state over, and RUNNING runs it', async (t) => {
  const blob = await blobOf();
  const { device, engine, interrupts } = engineOf();
  const port = new EnginePort(engine);
  await port.setState(RESUMING);
  device.holdsLock = false;
  interrupts.triggerMsix(3);
  for (let at = 0; at < blob.length; at += 100) await port.write(blob.subarray(at, at + 100));
  t.equal(device.state.memory[0], 0, 'nothing before the end');
  device.takeCalls();
  await port.setState(STOP);
  t.strictSame(device.takeCalls(), ['commit', 'acquireExclusive']);
  t.ok(device.state.memory.every((byte) => byte === 0x5a));
  t.equal(device.holdsLock, true);
  await port.setState(RUNNING);
  t.strictSame(device.takeCalls(), ['resume']);
});

t.test('the hold that was handed over is taken again before the device runs', async (t) => {
  const { device, engine } = engineOf();
  const port = new EnginePort(engine);
  await port.setState(STOP_COPY);
  t.equal(device.holdsLock, false);
  device.takeCalls();
  device.hook = (step) => {
    if (step === 'acquireExclusive') throw new RequestError(Errno.EBUSY, 'the other side has it');
  };
  t.equal(await outcome(port.setState(RUNNING)), Errno.EBUSY);
  t.equal(port.state, STOP, 'it does not run without');
  t.strictSame(device.takeCalls(), ['acquireExclusive']);
  device.hook = () => {};
  await port.setState(RUNNING);
  t.strictSame(device.takeCalls(), ['acquireExclusive', 'resume']);
  await port.setState(STOP);
  await port.setState(RUNNING);
  t.strictSame(device.takeCalls(), ['quiesce', 'resume'], 'once');
});

t.test('a step that fails leaves the state before it, a commit that fails leaves ERROR', async (t) => {
  const cases: [MigrationState, MigrationState, string, MigrationState][] = [
    [RUNNING, STOP_COPY, 'quiesce', RUNNING],
    [RUNNING, STOP_COPY, 'releaseExclusive', STOP],
    [PRE_COPY, STOP_COPY, 'quiesce', PRE_COPY],
    [PRE_COPY, STOP_COPY, 'releaseExclusive', PRE_COPY_P2P],
    [STOP, RUNNING, 'resume', RUNNING_P2P],
    [STOP_COPY, RUNNING, 'acquireExclusive', STOP],
  ];
  for (const [from, to, step, left] of cases) {
    const { device, engine } = engineOf();
    const port = new EnginePort(engine);
    await port.setState(from);
    device.hook = (at) => {
      if (at === step) throw new RequestError(Errno.ENOSPC, 'no');
    };
    t.equal(await outcome(port.setState(to)), Errno.ENOSPC);
    t.equal(port.state, left, `${step} on the way to ${migrationStateName(to)}`);
    device.hook = () => {};
    await port.setState(to);
    t.equal(port.state, to, 'and the next attempt succeeds');
  }

  const blob = await blobOf();
  for (const step of ['commit', 'acquireExclusive']) {
    const { device, engine } = engineOf();
    const port = new EnginePort(engine);
    await port.setState(RESUMING);
    port.write(blob);
    device.hook = (at) => {
      if (at === step) throw new RequestError(Errno.ENOSPC, 'no');
    };
    t.equal(await outcome(port.setState(STOP)), Errno.ENOSPC);
    t.equal(port.state, ERROR);
    for (const target of TARGETS)
      t.equal(await outcome(port.setState(target)), Errno.EINVAL, 'only a reset helps');
    device.hook = () => {};
    device.takeCalls();
    await port.reset();
    t.equal(port.state, RUNNING);
    t.strictSame(device.takeCalls(), ['reset aborted', 'resume']);
  }
});

t.test('a load that is refused', async (t) => {
  const blob = await blobOf();
  const refused = async (what: string, bytes: Uint8Array, options: ScratchOptions = {}): Promise<void> => {
    const { device, engine } = engineOf(options);
    device.state.memory.fill(0x11);
    const port = new EnginePort(engine);
    await port.setState(RESUMING);
    const { commits } = device.state;
    const atWrite = refusal(() => port.write(bytes));
    const atStop = await outcome(port.setState(STOP));
    t.type(atStop, 'number', `${what}: refused with an errno`);
    t.not(atStop, 0, `${what}: ${atWrite === 0 ? 'at the end' : 'and at the end still'}`);
    t.equal(port.state, ERROR);
    t.equal(device.state.commits, commits, 'the device is what it was');
    t.ok(device.state.memory.every((byte) => byte === 0x11));
  };
  await refused('nothing', new Uint8Array(0));
  await refused('half of it', blob.subarray(0, blob.length / 2));
  await refused('all but one byte', blob.subarray(0, -1));
  await refused('more than it', Buffer.concat([blob, blob]));
  await refused('another value of a parameter', blob, { parameter: 'other' });
  await refused('another size', blob, { stateSize: 8192 });
  const damaged = Buffer.from(blob);
  damaged[damaged.length >> 1]! ^= 4;
  await refused('damaged', damaged);
});

t.test('interrupts that come while the device stops are delivered when it runs', async (t) => {
  const { engine, interrupts } = engineOf();
  let signalled = 0;
  const signal = { signal: () => void signalled++, close: () => {} };
  interrupts.set({ flags: 0x24, index: 2, start: 0, count: 1 }, new Uint8Array(0), [signal]);
  const port = new EnginePort(engine);
  await port.setState(STOP);
  interrupts.triggerMsix(0);
  t.equal(signalled, 0);
  await port.setState(RUNNING);
  t.equal(signalled, 1);
});

t.test('reset ends everything, in every state', async (t) => {
  for (const target of TARGETS) {
    const { device, engine, interrupts } = engineOf();
    const port = new EnginePort(engine);
    await port.setState(target);
    device.takeCalls();
    await engine.reset('requested');
    const ran = target === RUNNING || target === PRE_COPY;
    t.strictSame(
      device.takeCalls(),
      ran ? ['reset requested'] : ['reset requested', 'resume'],
      migrationStateName(target),
    );
    t.equal(port.state, RUNNING);
    t.equal(device.running, true);
    interrupts.triggerMsix(0);
    t.equal(await outcome(port.read(10)), Errno.EINVAL, 'no session');
    t.equal(
      refusal(() => port.write(new Uint8Array(1))),
      Errno.EINVAL,
    );
    await new EnginePort(engine).setState(STOP);
    t.pass('and anyone may drive next');
  }
});

t.test('one drives, all may look', async (t) => {
  const { engine } = engineOf();
  const driver = new EnginePort(engine);
  const other = new EnginePort(engine);
  await driver.setState(PRE_COPY);
  t.equal(other.state, PRE_COPY);
  t.type(other.dataSize, 'number');
  t.equal(await outcome(other.setState(STOP)), Errno.EBUSY);
  t.equal(await outcome(other.read(100)), Errno.EBUSY, 'a read would take bytes away');
  t.equal(await outcome(other.reset()), Errno.EBUSY);
  await other.close();
  t.equal(driver.state, PRE_COPY, 'nothing changes when one who looks leaves');
  await driver.setState(RESUMING);
  t.equal(
    refusal(() => new EnginePort(engine).write(new Uint8Array(1))),
    Errno.EBUSY,
  );
  await driver.reset();
  await driver.setState(STOP);
  await driver.setState(RUNNING);
  await new EnginePort(engine).setState(STOP);
  t.pass('when it runs again the next may drive');
});

t.test('a dirty log belongs to who started it', async (t) => {
  const { engine, memory } = engineOf();
  const first = new EnginePort(engine);
  const second = new EnginePort(engine);
  const report = { iova: 0, length: 4096, pageSize: 4096 };
  const bitmap = new Uint8Array(8);
  t.equal(
    refusal(() => first.reportLogging(report, bitmap)),
    Errno.EINVAL,
    'off',
  );
  first.stopLogging();
  t.equal(first.startLogging({ pageSize: 1, ranges: [] }), 4096, 'the page size in force is returned');
  t.equal(
    refusal(() => second.startLogging({ pageSize: 4096, ranges: [] })),
    Errno.EBUSY,
  );
  t.equal(
    refusal(() => second.reportLogging(report, bitmap)),
    Errno.EBUSY,
    'a report would take pages away',
  );
  t.equal(
    refusal(() => second.stopLogging()),
    Errno.EBUSY,
  );
  const file = memfd(4096);
  const backing = openBacking({ flags: 3, offset: 0, address: 0, size: 4096 }, file, VMM);
  file.close();
  memory.add({ address: 0, length: 4096, readable: true, writable: true, backing });
  await memory.write(0, new Uint8Array(1));
  first.reportLogging(report, bitmap);
  t.equal(bitmap[0], 1);
  await first.close();
  t.equal(
    refusal(() => second.startLogging({ pageSize: 4096, ranges: [] })),
    0,
    'it ends with its owner, who never drove',
  );
});

t.test('what a driver that dies leaves', async (t) => {
  const policy: [MigrationState, MigrationState, string[]][] = [
    [RUNNING_P2P, RUNNING, ['resume']],
    [PRE_COPY, RUNNING, []],
    [PRE_COPY_P2P, RUNNING, ['resume']],
    [RESUMING, RUNNING, ['reset aborted', 'resume']],
    [STOP, STOP, []],
    [STOP_COPY, STOP_COPY, []],
  ];
  for (const [state, left, expected] of policy) {
    const { device, engine } = engineOf();
    engine.vmmConnected(VMM);
    const driver = new EnginePort(engine);
    await driver.setState(state);
    driver.startLogging({ pageSize: 4096, ranges: [] });
    device.takeCalls();
    await driver.close();
    t.equal(engine.state, left, `in ${migrationStateName(state)}`);
    t.strictSame(device.takeCalls(), expected);
    const next = new EnginePort(engine);
    t.equal(
      refusal(() => next.startLogging({ pageSize: 4096, ranges: [] })),
      0,
      'the log is off',
    );
    await next.setState(RUNNING);
    t.equal(device.running, true, 'the next manager makes it run');
    t.equal(device.holdsLock, true, 'with all it needs');
  }
});

t.test('a driver that dies in ERROR leaves a device that was reset', async (t) => {
  const { device, engine } = engineOf();
  engine.vmmConnected(VMM);
  const driver = new EnginePort(engine);
  await driver.setState(RESUMING);
  await outcome(driver.setState(STOP));
  t.equal(engine.state, ERROR);
  device.takeCalls();
  await driver.close();
  t.equal(engine.state, RUNNING);
  t.strictSame(device.takeCalls(), ['reset aborted', 'resume']);
});

t.test('a VMM that leaves, in every state', async (t) => {
  for (const state of TARGETS) {
    for (const driverFirst of [false, true]) {
      const { device, engine } = engineOf();
      engine.vmmConnected(VMM);
      const driver = new EnginePort(engine);
      await driver.setState(state);
      device.state.memory.fill(9);
      if (driverFirst) await driver.close();
      device.takeCalls();
      await engine.vmmLeft();
      const what = `${migrationStateName(state)}, ${driverFirst ? 'after' : 'before'} the driver`;
      if (!driverFirst && state !== RUNNING) {
        t.equal(engine.state, state, `${what}: the driver still needs it`);
        t.equal(device.state.memory[0], 9);
        await driver.close();
      }
      t.equal(engine.state, RUNNING, what);
      t.equal(device.running, true);
      t.equal(device.state.memory[0], 0, 'reset for the next');
    }
  }
});

t.test('a driver that lets a device without VMM run gets one that was reset', async (t) => {
  const { device, engine } = engineOf();
  engine.vmmConnected(VMM);
  const driver = new EnginePort(engine);
  await driver.setState(STOP_COPY);
  await engine.vmmLeft();
  device.takeCalls();
  await driver.setState(RUNNING);
  t.strictSame(device.takeCalls(), ['acquireExclusive', 'resume', 'reset disconnected']);
});

t.test('what has arrived by a load is discarded with the VM that it came for', async (t) => {
  const blob = await blobOf();
  const arrive = async (target: MigrationState) => {
    const { device, engine } = engineOf();
    engine.vmmConnected(VMM);
    const manager = new EnginePort(engine);
    await manager.setState(RESUMING);
    manager.write(blob);
    await manager.setState(target);
    device.takeCalls();
    return { device, engine, manager };
  };
  for (const target of [STOP, RUNNING]) {
    const rolledBack = await arrive(target);
    await rolledBack.manager.reset();
    t.equal(rolledBack.device.takeCalls()[0], 'reset aborted', 'by its manager');

    const left = await arrive(target);
    await left.manager.close();
    t.strictSame(left.device.takeCalls(), [], 'the other side may run');
    await left.engine.reset('requested');
    t.equal(left.device.takeCalls()[0], 'reset requested', 'its guest may reset it');
    await left.engine.vmmLeft();
    t.equal(left.device.takeCalls()[0], 'reset aborted', 'its VMM has gone');
    left.engine.vmmConnected(VMM);
    await left.engine.vmmLeft();
    t.equal(left.device.takeCalls()[0], 'reset disconnected', 'the next VM has begun here');
  }
});

t.test('requests wait for the one under way', async (t) => {
  const { device, engine } = engineOf();
  const port = new EnginePort(engine);
  let finish = (): void => {};
  device.hook = (step) =>
    step === 'quiesce' ? new Promise<void>((resolve) => (finish = resolve)) : undefined;
  const stopping = port.setState(STOP_COPY);
  const reading = port.read(8);
  const running = port.setState(RUNNING);
  await new Promise(setImmediate);
  t.equal(port.state, RUNNING, 'not yet');
  finish();
  await stopping;
  t.equal((await reading).length, 1, 'the read comes in STOP_COPY');
  await running;
  t.equal(port.state, RUNNING);
});
