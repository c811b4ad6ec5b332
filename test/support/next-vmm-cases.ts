// SPDX-License-Identifier: Apache-2.0
/** One VMM follows another: what is the same at a served device and behind a relay. */

import type { Test } from 'tap';
import type { Client } from '../../src/client/index.js';
import { Errno, MigrationState, PciRegion } from '../../src/wire/index.js';
import { MemoryPeer, signals } from './memory.js';
import {
  AWAIT,
  commit,
  KEPT,
  kept,
  MEMORY,
  promote,
  ranges,
  readU32,
  realize,
  type Scene,
  writeU32,
} from './next-vmm.js';
import { Register } from './scratch-device.js';
import { outcome, until } from './served.js';

const { CONFIG } = PciRegion;
const { STOP, RUNNING } = MigrationState;

/** The first has the device again, as it was. @param mostSignals that one interrupt may come to */
export async function backToTheFirst(
  t: Test,
  boot: (t: Test) => Promise<Scene>,
  mostSignals: number,
): Promise<void> {
  for (const step of ['awaited', 'arrived', 'promoted', 'promoted, the second gone']) {
    const scene = await boot(t);
    const { scratch, first, manager, vectors, arrive } = scene;
    let second: Client | undefined;
    if (step === 'awaited') await manager.setNextVmm(AWAIT);
    else second = await arrive();
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
    t.equal(await kept(first), KEPT, step);
    t.equal(await readU32(first, CONFIG, 0x10), 0xfebf0000, step);
    t.same(ranges(scene), [MEMORY.address], step);
    t.match(await manager.dmaMaps(), [{ address: MEMORY.address }], step);
    await writeU32(first, 0, Register.RAISE, 1);
    const signalled = signals(vectors[1]!);
    t.ok(signalled >= 1 && signalled <= mostSignals, `${step}: ${signalled} signals`);
    t.notOk(
      scratch.takeCalls().some((call) => call.startsWith('reset')),
      step,
    );
    t.equal(await outcome(manager.setNextVmm({ action: 'promote' })), Errno.EINVAL, step);
  }
}

/** Who has the device when one of them leaves, or another one comes. */
export async function whoHasTheDevice(t: Test, boot: (t: Test) => Promise<Scene>): Promise<void> {
  await t.test('the first leaves before the second comes: cpr-exec', async (t) => {
    const { bed, scratch, first, manager, memory } = await boot(t);
    await manager.setNextVmm(AWAIT);
    await manager.setState(STOP);
    first.close();
    await until(async () => !(await manager.nextVmm()).first);
    t.match(await manager.nextVmm(), { phase: 'awaited', first: false, second: false });
    const second = await bed.vmm();
    await realize(second, memory);
    await manager.setNextVmm({ action: 'promote' });
    await commit(manager);
    t.equal(await kept(second), KEPT);
    t.match(await manager.nextVmm(), { phase: 'none', first: true, resets: 0 });
    t.same(scratch.takeCalls(), ['quiesce', 'resume']);
  });

  await t.test('no VMM comes within the time, and the first stays', async (t) => {
    const { scratch, first, manager } = await boot(t);
    await manager.setNextVmm({ action: 'await', timeoutMs: 20 });
    await until(async () => (await manager.nextVmm()).phase === 'none');
    t.equal(await kept(first), KEPT);
    first.close();
    await until(() => scratch.calls.includes('reset disconnected'));
  });

  await t.test('the second comes and goes, and comes again', async (t) => {
    const { bed, first, manager, memory, arrive } = await boot(t);
    const second = await arrive();
    second.close();
    await until(async () => (await manager.nextVmm()).phase === 'awaited');
    const again = await bed.vmm();
    await realize(again, memory);
    await promote(manager);
    await commit(manager);
    await first.closed();
    t.equal(await kept(again), KEPT);
    t.match(await manager.nextVmm(), { resets: 0, absorbed: { resets: 2 } });
  });

  await t.test('the first leaves after the exchange: there is no way back', async (t) => {
    const { scratch, first, manager, arrive } = await boot(t);
    const second = await arrive();
    await promote(manager);
    first.close();
    await until(async () => (await manager.nextVmm()).phase === 'none');
    await manager.setNextVmm({ action: 'commit' });
    await manager.setState(RUNNING);
    t.equal(await kept(second), KEPT);
    second.close();
    await until(() => scratch.calls.includes('reset disconnected'));
  });

  await t.test('the manager leaves: another one continues', async (t) => {
    const { bed, manager, arrive } = await boot(t);
    const second = await arrive();
    await promote(manager);
    manager.close();
    const next = await bed.manager();
    t.match(await next.nextVmm(), { phase: 'promoted' });
    await commit(next);
    t.equal(await kept(second), KEPT);
  });

  await t.test('a third comes: it waits', async (t) => {
    const { bed, first, manager, arrive } = await boot(t);
    const second = await arrive();
    const third = bed.vmm();
    await promote(manager);
    await commit(manager);
    await first.closed();
    t.equal(await kept(second), KEPT);
    second.close();
    t.equal(await kept(await third), 0, 'and finds a device that was reset');
  });
}

/** A second VMM without memory that can be mapped. */
export async function memoryByMessages(t: Test, scene: Scene): Promise<void> {
  const { bed, manager } = scene;
  const memory = new MemoryPeer();
  await manager.setNextVmm(AWAIT);
  const second = await bed.vmm({ dma: memory.handler });
  await second.dmaMap({ ...MEMORY, address: 0x40000 });
  await promote(manager);
  t.same(ranges(scene), [0x40000]);
  await commit(manager);
  await writeU32(second, 0, Register.DMA_ADDRESS, 0x40000);
  await writeU32(second, 0, Register.DMA_LENGTH, 64);
  await writeU32(second, 0, Register.DMA_COMMAND, 2);
  t.equal(memory.writes, 1);
}
