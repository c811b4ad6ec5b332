// SPDX-License-Identifier: Apache-2.0
/** Managers of one device behind a relay and the log of its DMA, which the server takes for one client's. */

import t from 'tap';
import type { MigrationClient } from '../../src/client/index.js';
import { Client, RegionMigrationClient } from '../../src/client/index.js';
import { Command, Errno } from '../../src/wire/index.js';
import { memfd } from '../support/memory.js';
import { dmaMap } from '../support/payloads.js';
import { outcome, type Test, until } from '../support/served.js';
import { RelayBed } from './support.js';

const AT = 0x10000000;
const SIZE = 1 << 20;
const START = { pageSize: 4096, ranges: [] };
const REPORT = { iova: AT, length: SIZE, pageSize: 4096 };

async function bed(t: Test) {
  const bed = new RelayBed(t);
  const served = bed.serveScratch({ migration: 'both' });
  const vmm = await bed.vmm();
  const fd = memfd(SIZE);
  t.teardown(() => fd.close());
  await vmm.request(Command.DMA_MAP, [dmaMap(AT, SIZE, 3)], () => {}, { fds: [fd] });
  const managers = {
    v2: () => bed.manager(),
    // The server takes a second START of v1 for the first one said again.
    v1: async (): Promise<MigrationClient> => {
      const region = await RegionMigrationClient.open(await Client.connect(bed.migrationPath));
      if (region === undefined) throw new Error('no migration region');
      t.teardown(() => region.close());
      return region;
    },
  };
  return { bed, served, managers };
}

for (const protocol of ['v2', 'v1'] as const) {
  t.test(`one manager's log is not another's, and ends with it, ${protocol}`, async (t) => {
    const { bed: relay, managers } = await bed(t);
    const [one, other] = [await managers[protocol](), await managers[protocol]()];
    await one.startLogging(START);
    for (const work of [
      () => other.startLogging(START),
      () => other.reportLogging(REPORT),
      () => other.stopLogging(),
    ])
      t.equal(await outcome(work()), Errno.EBUSY);
    t.equal(await outcome(one.reportLogging(REPORT)), 0, 'it is as it was');
    await t.rejects(relay.relay.switchTo(relay.serverPath, true), { message: /has its DMA logged/ });

    one.close();
    await until(async () => (await outcome(other.reportLogging(REPORT))) !== Errno.EBUSY);
    t.equal(await outcome(other.reportLogging(REPORT)), Errno.EINVAL, 'the server logs no more');
    t.equal(await outcome(other.startLogging(START)), 0);
    t.equal(await outcome(other.stopLogging()), 0);
    t.equal(await outcome((await managers.v2()).startLogging(START)), 0, "one that was stopped is anybody's");
  });
}

t.test('a log that the server refuses belongs to no manager', async (t) => {
  const { managers } = await bed(t);
  const [one, other] = [await managers.v2(), await managers.v2()];
  t.equal(await outcome(one.startLogging({ pageSize: 3, ranges: [] })), Errno.EINVAL);
  t.equal(await outcome(other.startLogging(START)), 0);
});
