// SPDX-License-Identifier: Apache-2.0
/** A guest under load on birch, over the socket, and its moves from one birch to another. */

import t from 'tap';
import {
  BLOCK_BYTES,
  BlockWriter,
  GuestMachine,
  moveGuest,
  NvmeDriver,
} from '../../../../src/guest-driver/index.js';
import { TestBed } from '../../../guest-driver/served-nvme.js';

const BLOCKS = 1024;

for (const shareMemory of [true, false]) {
  t.test(`there and back under load, memory ${shareMemory ? 'shared' : 'by messages'}`, async (t) => {
    const bed = new TestBed(t, BLOCKS * BLOCK_BYTES);
    const places = [
      await bed.serve({ vendor: 'birch' }),
      await bed.serve({ vendor: 'birch', incoming: true }),
    ] as const;
    const machine = await GuestMachine.start(places[0].socketPath, {
      memoryBytes: 8 * 1024 * 1024,
      shareMemory,
    });
    const driver = await NvmeDriver.start(machine, { queues: 4, queueEntries: 16 });
    t.teardown(() => {
      driver.detach();
      driver.machine.close();
    });
    const load = new BlockWriter(driver, { blocks: BLOCKS, depth: 48 });
    for (let move = 0; move < 4; move++) {
      await load.progress(200);
      await moveGuest(driver, places[move % 2]!, places[(move + 1) % 2]!, {
        onRound: () => load.progress(50),
        onCopied: (from, to) =>
          t.ok(Buffer.compare(from.ram.bytes, to.ram.bytes) === 0, 'memories are equal'),
      });
    }
    await load.progress(200);
    await load.stop();
    t.ok(load.checkImage(bed.content()) > 100, `${load.written} writes: the image is what was written`);
    t.equal(await load.readBack(), BLOCKS);
    t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
    await driver.shutdown();
  });
}
