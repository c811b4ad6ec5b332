// SPDX-License-Identifier: Apache-2.0
/** Moves of the built-in guest between servers, under load. */

import t, { type Test } from 'tap';
import {
  BLOCK_BYTES,
  BlockWriter,
  GuestMachine,
  moveGuest,
  NvmeDriver,
} from '../../src/guest-driver/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { TestBed } from './served-nvme.js';

const BLOCKS = 1024;

async function bootAt(t: Test, socketPath: string, shareMemory = true) {
  const machine = await GuestMachine.start(socketPath, { memoryBytes: 8 * 1024 * 1024, shareMemory });
  const driver = await NvmeDriver.start(machine, { queues: 4, queueEntries: 16 });
  t.teardown(() => {
    driver.detach();
    driver.machine.close();
  });
  return driver;
}

for (const shareMemory of [true, false]) {
  t.test(`there and back under load, memory ${shareMemory ? 'shared' : 'by messages'}`, async (t) => {
    const bed = new TestBed(t, BLOCKS * BLOCK_BYTES);
    const [a, b] = [await bed.serve(), await bed.serve({ incoming: true })];
    const driver = await bootAt(t, a.socketPath, shareMemory);
    const load = new BlockWriter(driver, { blocks: BLOCKS, depth: 24 });
    let outstanding = 0;
    for (const [source, destination] of [
      [a, b],
      [b, a],
      [a, b],
      [b, a],
    ] as const) {
      await load.progress(200);
      const report = await moveGuest(driver, source, destination, {
        onRound: () => load.progress(50),
        onCopied: (from, to) =>
          t.ok(Buffer.compare(from.ram.bytes, to.ram.bytes) === 0, 'memories are equal'),
      });
      // What the VMM writes for the device is in its own log.
      const { total } = report.devicePages;
      t.equal(total > 0, shareMemory, `${total} pages written by the device`);
      t.ok(report.stateBytes.paused > 0);
      outstanding += report.outstanding;
    }
    t.ok(outstanding > 0, 'the device had commands when it was stopped');
    await load.progress(200);
    await load.stop();
    t.ok(load.checkImage(bed.content()) > 100, `${load.written} writes: the image is what was written`);
    t.equal(await load.readBack(), BLOCKS);
    t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
  });
}

t.test('a destination that refuses leaves the guest where it is', async (t) => {
  const bed = new TestBed(t, BLOCKS * BLOCK_BYTES);
  const source = await bed.serve();
  const other = await bed.serve({ incoming: true, parameters: { serial: 'ANOTHER' } });
  const good = await bed.serve({ incoming: true });
  const driver = await bootAt(t, source.socketPath);
  const load = new BlockWriter(driver, { blocks: BLOCKS, depth: 8 });
  await load.progress(50);
  await t.rejects(moveGuest(driver, source, other), { code: 'DEVSTATE_E_REFUSED' });
  t.equal(await source.manager.state(), MigrationState.RUNNING);
  await load.progress(50);
  await moveGuest(driver, source, good);
  await load.progress(50);
  await load.stop();
  await load.readBack();
  t.equal(driver.counters.failed, 0);
});

t.test('a guest that was paused with commands in flight continues where it was', async (t) => {
  const bed = new TestBed(t, BLOCKS * BLOCK_BYTES);
  const { socketPath } = await bed.serve();
  const driver = await bootAt(t, socketPath);
  const buffers = Array.from({ length: 32 }, () => driver.allocate(BLOCK_BYTES));
  const reads = buffers.map((buffer, i) => driver.read(i, buffer));
  const pausing = driver.pause();
  t.equal(driver.outstanding, 32, 'entries are in the rings, their doorbells not rung');
  await pausing;
  t.equal(driver.counters.completed, driver.counters.submitted - 33, 'nothing is looked at while paused');
  driver.resume();
  await Promise.all(reads);
});

t.test('the block writer notices what is not as it was written', async (t) => {
  const bed = new TestBed(t, BLOCKS * BLOCK_BYTES);
  const { socketPath } = await bed.serve();
  const driver = await bootAt(t, socketPath);
  const writer = new BlockWriter(driver, { blocks: 64, depth: 4 });
  await writer.progress(500);
  await writer.stop();
  const image = bed.content();
  t.equal(writer.checkImage(image), 64);
  const refuses = (message: RegExp, spoil: (copy: Uint8Array) => void) => {
    const copy = image.slice();
    spoil(copy);
    t.throws(() => writer.checkImage(copy), { code: 'DEVSTATE_E_GUEST_DATA', message });
  };
  refuses(/position 5 .* holds no block/, (copy) => copy.fill(0, 5 * BLOCK_BYTES, 6 * BLOCK_BYTES));
  refuses(/position 7 .* torn/, (copy) => copy.fill(0, 7 * BLOCK_BYTES + 2048, 7 * BLOCK_BYTES + 2056));
  refuses(/position 9 .* of position 8/, (copy) =>
    copy.copyWithin(9 * BLOCK_BYTES, 8 * BLOCK_BYTES, 9 * BLOCK_BYTES),
  );
  writer.ledger[11]! += 1;
  refuses(/position 11 .* holds number/, () => {});
});
