// SPDX-License-Identifier: Apache-2.0
/** Whole migrations between two servers over their sockets, as a client of protocol v2 that knows no more than the specification drives them. */

import { createHash } from 'node:crypto';
import t from 'tap';
import type { MigrationClient } from '../../src/client/index.js';
import { dirtyRanges } from '../../src/migration/index.js';
import { closeAll } from '../../src/transport/index.js';
import { MigrationFlag, MigrationState } from '../../src/wire/index.js';
import { sameBytes } from '../support/hex.js';
import { eventfd, memfd, signals } from '../support/memory.js';
import { u32 } from '../support/payloads.js';
import { Register } from '../support/scratch-device.js';
import { outcome, serveScratch } from '../support/served.js';

const { STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY, PRE_COPY_P2P, RUNNING_P2P } = MigrationState;

/** Reads until nothing comes, as a robust client does, and passes it on. Returns the bytes moved. */
async function pump(from: MigrationClient, to: MigrationClient, chunk: number): Promise<number> {
  const buffer = new Uint8Array(chunk);
  let moved = 0;
  for (;;) {
    const size = await from.readData(buffer);
    if (size === 0) return moved;
    await to.writeData(buffer.subarray(0, size));
    moved += size;
  }
}

const digest = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

t.test('there and back, fifty times, the device changing all the while', async (t) => {
  const sides = [serveScratch(t, { stateSize: 32768 }), serveScratch(t, { stateSize: 32768 })] as const;
  const vmms = [await sides[0].vmm(), await sides[1].vmm()] as const;
  const managers = [await sides[0].manager(), await sides[1].manager()] as const;
  t.equal(await managers[0].flags(), MigrationFlag.STOP_COPY | MigrationFlag.P2P | MigrationFlag.PRE_COPY);
  const model = new Uint8Array(32768);
  const write = async (side: number, round: number): Promise<void> => {
    const data = Uint8Array.from({ length: 500 }, (_, i) => (round * 7 + i) & 0xff);
    const at = (round * 3457) % (model.length - 500);
    await vmms[side]!.regionWrite(2, at, data);
    model.set(data, at);
  };
  for (let round = 0; round < 50; round++) {
    const side = round % 2;
    const source = managers[side]!;
    const target = managers[1 - side]!;
    const chunk = [1 << 20, 4096, 333][round % 3]!;
    await write(side, 4 * round);
    await target.setState(RESUMING);
    if (round % 4 !== 3) {
      await source.setState(PRE_COPY);
      await write(side, 4 * round + 1);
      await pump(source, target, chunk);
      await write(side, 4 * round + 2);
      if (round % 8 === 0) await source.readData(new Uint8Array(0));
      if (round % 2 === 0) await source.setState(PRE_COPY_P2P);
    }
    await source.setState(STOP_COPY);
    await write(side, 4 * round + 3).catch(() => {});
    await pump(source, target, chunk);
    await target.setState(STOP);
    await target.setState(round % 2 === 0 ? RUNNING_P2P : RUNNING);
    await target.setState(RUNNING);
    await source.setState(STOP);
    const found = new Uint8Array(model.length);
    await vmms[1 - side]!.regionRead(2, 0, found);
    // What was written while the source was stopped may or may not have been in time; it is not the guest's.
    if (!sameBytes(found, model)) t.fail(`round ${round}: ${digest(found)} instead of ${digest(model)}`);
  }
  t.equal(await managers[0].state(), RUNNING);
});

t.test('chunks of one byte and of four', async (t) => {
  for (const chunk of [1, 4]) {
    const source = serveScratch(t, { stateSize: 1024 });
    const target = serveScratch(t, { stateSize: 1024 });
    const [from, to] = [await source.manager(), await target.manager()];
    source.scratch.state.memory.fill(chunk);
    await to.setState(RESUMING);
    await from.setState(STOP_COPY);
    const size = await from.dataSize();
    t.ok(size !== undefined && size >= 1024, 'an estimate');
    await pump(from, to, chunk);
    t.equal(await from.dataSize(), 0);
    await to.setState(RUNNING);
    t.ok(target.scratch.state.memory.every((byte) => byte === chunk));
  }
});

t.test('pages that the device writes are reported once, wherever they are', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const manager = await served.manager();
  const [low, high] = [memfd(0x100000), memfd(0x100000)];
  t.teardown(() => closeAll([low, high]));
  await vmm.dmaMap({ flags: 3, offset: 0, address: 0, size: 0x100000 }, low);
  await vmm.dmaMap({ flags: 3 | 8, offset: 0, address: 2 ** 40, size: 0x100000 }, high);
  const dma = async (address: number, length: number): Promise<void> => {
    await vmm.regionWrite(
      0,
      Register.DMA_ADDRESS,
      u32(address % 2 ** 32, Math.floor(address / 2 ** 32), length),
    );
    await vmm.regionWrite(0, Register.DMA_COMMAND, u32(2));
  };
  const report = async (iova: number): Promise<[number, number][]> => {
    const range = { iova, length: 0x100000, pageSize: 4096 };
    const bitmap = await manager.reportLogging(range);
    return [...dirtyRanges(bitmap, iova, range.length, 4096)].map(({ iova, length }) => [iova, length]);
  };
  await dma(0x1000, 16);
  t.equal(await manager.startLogging({ pageSize: 4096, ranges: [] }), 4096);
  t.strictSame(await report(0), [], 'only what comes after the start');
  await dma(0x5ff8, 16);
  await dma(0x9000, 4096);
  await dma(2 ** 40 + 0xff000, 1);
  t.strictSame(await report(0), [
    [0x5000, 0x2000],
    [0x9000, 0x1000],
  ]);
  t.strictSame(await report(0), []);
  t.strictSame(await report(2 ** 40), [[2 ** 40 + 0xff000, 0x1000]], 'by pwrite, at a terabyte');
  await manager.writeMemory(0x20000, new Uint8Array(1));
  t.strictSame(await report(0), [[0x20000, 0x1000]], "a manager's own too");
  await manager.stopLogging();
  await manager.startLogging({ pageSize: 4096, ranges: [{ iova: 0x8000, length: 0x2000 }] });
  await dma(0x7ff8, 16);
  await dma(0x100, 4);
  t.strictSame(await report(0), [[0x8000, 0x1000]], 'only the range asked for');
});

t.test('an interrupt of the time between arrives at the destination', async (t) => {
  const source = serveScratch(t);
  const target = serveScratch(t);
  const [from, to] = [await source.manager(), await target.manager()];
  const vmm = await target.vmm();
  const line = eventfd();
  t.teardown(() => line.close());
  await to.setState(RESUMING);
  await from.setState(STOP_COPY);
  await pump(from, to, 4096);
  await to.setState(STOP);
  await vmm.regionWrite(0, Register.RAISE, u32(0));
  await to.setState(RUNNING);
  await vmm.assignEventfds(2, [line]);
  t.equal(signals(line), 1, 'although its eventfd came last');
});

t.test('a destination that refuses: the source runs on, and a second attempt succeeds', async (t) => {
  const source = serveScratch(t);
  const target = serveScratch(t);
  const [from, to] = [await source.manager(), await target.manager()];
  source.scratch.state.memory.fill(0x3c);
  await to.setState(RESUMING);
  await from.setState(STOP_COPY);
  await pump(from, to, 1000);
  target.scratch.hook = (step) => {
    if (step === 'commit') throw new Error('cannot');
  };
  t.type(await outcome(to.setState(STOP)), 'number');
  t.equal(await to.state(), MigrationState.ERROR);
  target.scratch.hook = () => {};
  await from.setState(RUNNING);
  t.equal(source.scratch.running, true);
  t.equal(source.scratch.holdsLock, true);
  await to.reset();

  await to.setState(RESUMING);
  await from.setState(STOP_COPY);
  await pump(from, to, 1000);
  await to.setState(RUNNING);
  t.ok(target.scratch.state.memory.every((byte) => byte === 0x3c));
});
