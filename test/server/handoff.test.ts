// SPDX-License-Identifier: Apache-2.0
/** A served device goes to its successor under a guest that works: nothing is lost, nothing is reset, nothing leaks. */

import t, { type Test } from 'tap';
import { BlockWriter, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { Succession, type Vendor } from '../guest-driver/successors.js';

const STANDARD = 'org.devstate.nvme';

async function boot(t: Test, vendor: Vendor, shareMemory = true) {
  const succession = new Succession(t);
  const first = succession.start(vendor);
  const machine = await GuestMachine.start(succession.socketPath, { shareMemory });
  t.teardown(() => machine.close());
  const driver = await NvmeDriver.start(machine, { queues: 2 });
  t.teardown(() => driver.detach());
  return { succession, first, machine, driver };
}

for (const shareMemory of [true, false]) {
  t.test(`a guest that writes, memory ${shareMemory ? 'shared' : 'by messages'}`, async (t) => {
    const { succession, first, driver } = await boot(t, 'alder', shareMemory);
    const writer = new BlockWriter(driver, { blocks: 1024, depth: 8 });
    let old = first;
    const vendors: Vendor[] = ['alder', 'birch', 'birch', 'alder'];
    for (const [index, vendor] of vendors.entries()) {
      await writer.progress(100);
      const next = succession.successor(vendor);
      const report = await succession.handOver(next.takeover, STANDARD);
      t.match(report, { unconfirmed: false }, `to ${vendor} ${JSON.stringify(report)}`);
      await old.server.ended;
      t.notOk(old.image.locked);
      t.ok(next.image.locked);
      const manager = await succession.manager();
      t.match(await manager.handoffStatus(), { generation: index + 1, serving: true });
      manager.close();
      old = next;
      await writer.progress(100);
    }
    await writer.stop();
    t.equal(await writer.readBack(), 1024);
    t.ok(writer.checkImage(succession.content()) > 100);
    t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
  });
}
