// SPDX-License-Identifier: Apache-2.0
/** A served device goes to its successor under a guest that works: nothing is lost, nothing is reset, nothing leaks. */

import { existsSync } from 'node:fs';
import t, { type Test } from 'tap';
import { Client, MigrationClient } from '../../src/client/index.js';
import { ImageFile } from '../../src/devices/nvme/index.js';
import { BlockWriter, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { takeoverPaths } from '../../src/handoff/index.js';
import { Succession, type Vendor } from '../guest-driver/successors.js';
import { until } from '../support/served.js';

const STANDARD = 'org.devstate.nvme';

/** A device that is served, and a guest that drives it. */
async function boot(t: Test, vendor: Vendor, shareMemory = true) {
  const succession = new Succession(t);
  const first = succession.start(vendor);
  const machine = await GuestMachine.start(succession.socketPath, { shareMemory });
  t.teardown(() => machine.close());
  const driver = await NvmeDriver.start(machine, { queues: 2 });
  t.teardown(() => driver.detach());
  return { succession, first, machine, driver };
}

t.test('a successor whose manager leaves, or whose giver never comes, ends', async (t) => {
  const succession = new Succession(t);
  succession.start('alder');
  const { server, takeover } = succession.successor('birch');
  const manager = new MigrationClient(await Client.connect(takeoverPaths(takeover).manager));
  t.match(await manager.handoffStatus(), { generation: 0, serving: false });
  manager.close();
  await t.rejects(server.ended, { code: 'DEVSTATE_E_HANDOFF', message: /the manager has left/ });
  // Had the manager been killed, no one else would remove it.
  await until(() => !existsSync(takeover));
});

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
      await old.image.close();
      const third = { path: succession.imagePath, lock: true };
      t.throws(
        () => ImageFile.open(third),
        { code: 'DEVSTATE_E_IMAGE_LOCKED' },
        'the lock was never dropped',
      );
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
