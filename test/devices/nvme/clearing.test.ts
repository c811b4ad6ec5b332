// SPDX-License-Identifier: Apache-2.0
/**
 * Deallocations and writes of zeros, whose time the file system decides: they hold up neither other commands nor the end of
 * what the controller does. The calls of the addon are slowed down as a fragmented image on ext4 with discard does it.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { native } from '../../../src/native/index.js';
import { createRig, DATA, imageFolder, type Rig, VENDORS } from './rig.js';

t.setTimeout(120_000);

const MIB = 1024 * 1024;
const SIZE = 16 * MIB;
/** Ms for a MiB. */
const SLOWNESS = 20;

/** Slows fallocate(2) down, where it blocks and where it does not. @returns the ranges of the calls */
function slow(t: Test): { position: number; length: number }[] {
  const calls: { position: number; length: number }[] = [];
  const { allocate, allocateLater } = native;
  const word = new Int32Array(new SharedArrayBuffer(4));
  native.allocate = (fd, mode, position, length) => {
    Atomics.wait(word, 0, 0, (length / MIB) * SLOWNESS);
    return allocate(fd, mode, position, length);
  };
  native.allocateLater = async (fd, mode, position, length) => {
    calls.push({ position, length });
    await sleep((length / MIB) * SLOWNESS);
    return allocateLater(fd, mode, position, length);
  };
  t.teardown(() => Object.assign(native, { allocate, allocateLater }));
  return calls;
}

async function rigOf(t: Test, vendor: (typeof VENDORS)[number]): Promise<{ rig: Rig; path: string }> {
  const path = join(imageFolder(t), 'disk');
  writeFileSync(path, new Uint8Array(SIZE).fill(0x77));
  const rig = createRig({ vendor, path, size: SIZE });
  t.teardown(() => rig.image.close());
  rig.useMsix(5);
  await rig.enable();
  await rig.createPair(1);
  return { rig, path };
}

/** DATASET MANAGEMENT: deallocate `blocks` from `first` on. */
function deallocation(rig: Rig, first: number, blocks: number) {
  rig.guest.view.setUint32(DATA - 0x10_0000 + 4, blocks, true);
  rig.guest.view.setBigUint64(DATA - 0x10_0000 + 8, BigInt(first), true);
  return { opcode: 9, nsid: 1, prp1: DATA, cdw10: 0, cdw11: 4 };
}

const READ = { opcode: 2, nsid: 1, prp1: DATA + 0x10_0000, cdw10: 0, cdw12: 7 };

for (const vendor of VENDORS) {
  t.test(`${vendor}: other commands are served while the whole image is deallocated`, async (t) => {
    const calls = slow(t);
    const { rig, path } = await rigOf(t, vendor);
    const whole = rig.queue(1, deallocation(rig, 0, SIZE / 512));
    const reads = [rig.queue(1, READ), rig.queue(1, READ)];
    rig.submit(1);
    // Two reads that wait for the thread pool end in any order.
    const first = [await rig.completion(1), await rig.completion(1)].sort(
      (one, other) => one.cid - other.cid,
    );
    const order = [...first, await rig.completion(1)];
    t.same(
      order.map(({ cid, status }) => [cid, status]),
      [...reads, whole].map((cid) => [cid, 0]),
    );
    t.ok(
      readFileSync(path).every((byte) => byte === 0),
      'all of it reads as zeros',
    );
    t.ok(calls.length > 16, `${calls.length} calls`);
    t.ok(
      calls.slice(4).every(({ length }) => length <= MIB),
      'small ones, once it is known that they are slow',
    );
  });

  t.test(`${vendor}: a deallocation that is slow does not hold up a migration`, async (t) => {
    const calls = slow(t);
    const { rig } = await rigOf(t, vendor);
    rig.queue(1, deallocation(rig, 0, SIZE / 512));
    rig.submit(1);
    await rig.until('a call', () => calls.length > 2);
    const before = calls.length;
    await rig.device.quiesce?.();
    t.ok(calls.length <= before + 1, 'it ends with the call under way: it is a hint');
    t.match(rig.poll(1), { status: 0 });
    await rig.image.unlock();
    t.equal(calls.length <= before + 1, true);
  });

  t.test(
    `${vendor}: zeros are written to the last byte, in turns with others, also while it stops`,
    async (t) => {
      const calls = slow(t);
      const { rig, path } = await rigOf(t, vendor);
      // 8 MiB each, without and with deallocation.
      const zeros = { opcode: 8, nsid: 1, cdw10: 0, cdw12: 0x3fff };
      rig.queue(1, zeros);
      rig.queue(1, { ...zeros, cdw10: 16384, cdw12: 0x02003fff });
      rig.submit(1);
      await rig.until('calls', () => calls.length > 4);
      t.ok(
        calls.some(({ position }) => position >= 8 * MIB),
        'one does not wait for the other',
      );
      await rig.device.quiesce?.();
      t.ok(readFileSync(path).every((byte) => byte === 0));
    },
  );

  t.test(`${vendor}: many long compares take little memory, and turns`, async (t) => {
    const { rig } = await rigOf(t, vendor);
    // 512 KiB each, of one page over and over.
    rig.guest.slice(DATA, 4096).fill(0x77);
    const list = DATA + 0x1000;
    for (let i = 0; i < 128; i++) rig.guest.view.setBigUint64(list - 0x10_0000 + 8 * i, BigInt(DATA), true);
    const compare = { opcode: 5, nsid: 1, prp1: DATA, prp2: list, cdw10: 0, cdw12: 1023 };
    const before = process.memoryUsage().arrayBuffers;
    for (let i = 0; i < 63; i++) rig.queue(1, { ...compare, cdw10: (i % 32) * 1024 });
    rig.submit(1);
    let most = 0;
    for (let left = 63; left > 0; ) {
      const found = rig.poll(1);
      if (found === undefined) await turn();
      else {
        t.equal(found.status, 0);
        left--;
      }
      most = Math.max(most, process.memoryUsage().arrayBuffers);
    }
    t.ok(most - before < 8 * MIB, `${most - before} bytes`);
  });
}
