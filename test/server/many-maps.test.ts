// SPDX-License-Identifier: Apache-2.0
/** As many DMA ranges as are offered: they live, are told of, handed over and taken away, and one more is refused. */

import { openSync, writeSync } from 'node:fs';
import t, { type Test } from 'tap';
import { Client } from '../../src/client/index.js';
import { check, native } from '../../src/native/index.js';
import { Fd } from '../../src/transport/index.js';
import { DmaUnmapFlag, Errno } from '../../src/wire/index.js';
import { Succession } from '../guest-driver/successors.js';
import { address, MOST, mapAll, PAGE, READ_WRITE } from '../support/many-maps.js';
import { outcome, resources, serveScratch } from '../support/served.js';

const PAGES = 256;
const BATCH = 512;
const ALL = { flags: DmaUnmapFlag.ALL, address: 0, size: 0 };

/** A memory file whose pages begin with their number. */
function numberedPages(t: Test): Fd {
  const fd = new Fd(check(native.memfdCreate('many-maps'), 'memory'));
  t.teardown(() => fd.close());
  check(native.truncate(fd.number, PAGES * PAGE), 'size');
  for (let page = 0; page < PAGES; page++) writeSync(fd.number, new Uint8Array([page]), 0, 1, page * PAGE);
  return fd;
}

for (const way of ['one fd', 'an fd each'] as const) {
  t.test(`65,535 ranges by ${way}`, async (t) => {
    const served = serveScratch(t);
    const fd = numberedPages(t);
    const before = resources();
    const vmm = await served.vmm();
    // Opened again, it is another open file of the same memory.
    const another = (): Fd => new Fd(openSync(`/proc/self/fd/${fd.number}`, 'r+'));
    await mapAll(vmm, PAGES, way === 'one fd' ? () => fd.duplicate() : another);
    t.ok(resources().maps < before.maps + 4, `one mapping serves all (${resources().maps})`);
    const one = { flags: READ_WRITE, offset: 0, address: address(MOST), size: PAGE };
    t.equal(await outcome(vmm.dmaMap(one, fd)), Errno.ENOSPC, 'one more is refused');

    const manager = await served.manager();
    const maps = await manager.dmaMaps();
    t.equal(maps.length, MOST);
    t.same(maps.at(-1), { address: address(MOST - 1), size: PAGE, flags: READ_WRITE });
    const byte = new Uint8Array(1);
    for (const index of [0, 1, 300, 40_000, MOST - 1]) {
      await manager.readMemory(address(index), byte);
      t.equal(byte[0], index % PAGES);
    }
    await vmm.dmaUnmap({ flags: 0, address: address(7), size: PAGE });
    t.equal(await outcome(manager.readMemory(address(7), byte)), Errno.EFAULT);
    await manager.readMemory(address(7 + PAGES), byte);
    t.equal(byte[0], 7, 'the same page at another address is still there');
    await vmm.dmaMap({ ...one, address: address(7) }, fd);

    const start = performance.now();
    await vmm.dmaUnmap(ALL);
    t.comment(`all unmapped in ${Math.round(performance.now() - start)} ms`);
    t.same(await manager.dmaMaps(), []);
    await vmm.dmaMap(one, fd);
    await manager.readMemory(one.address, byte);
    t.equal(byte[0], 0);
    await vmm.dmaUnmap(ALL);
    t.equal(resources().maps, before.maps, 'nothing stays mapped');
  });
}

t.test('65,535 ranges go to a successor', async (t) => {
  const succession = new Succession(t);
  succession.start('alder');
  const fd = numberedPages(t);
  const vmm = await Client.connect(succession.socketPath);
  t.teardown(() => vmm.close());
  await mapAll(vmm, PAGES, () => fd.duplicate());
  const next = succession.successor('birch');
  const report = await succession.handOver(next.takeover, 'org.devstate.nvme', {
    adopt: 20_000,
    freeze: 20_000,
  });
  t.match(report, { unconfirmed: false });
  const manager = await succession.manager();
  t.teardown(() => manager.close());
  t.equal((await manager.dmaMaps()).length, MOST);
  const byte = new Uint8Array(1);
  await manager.readMemory(address(40_001), byte);
  t.equal(byte[0], 40_001 % PAGES);
  t.equal(
    await outcome(vmm.dmaMap({ flags: READ_WRITE, offset: 0, address: address(MOST), size: PAGE }, fd)),
    Errno.ENOSPC,
  );
});

t.test('files of which the process can hold no more are refused, and the server continues', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const sparse = new Fd(check(native.memfdCreate('sparse'), 'memory'));
  t.teardown(() => sparse.close());
  check(native.truncate(sparse.number, 2 ** 46), 'size');
  // Across a border of extents each range needs a mapping of its own, and 65,535 of those there cannot be.
  const results = new Map<number | string, number>();
  for (let at = 0; at < 40_000; at += BATCH) {
    const batch = Array.from({ length: BATCH }, (_, i) => {
      const border = (at + i + 1) * 2 ** 30;
      const request = { flags: READ_WRITE, offset: border - PAGE, address: border - PAGE, size: 2 * PAGE };
      return outcome(vmm.dmaMap(request, sparse));
    });
    for (const result of await Promise.all(batch)) results.set(result, (results.get(result) ?? 0) + 1);
  }
  t.same([...results.keys()].sort(), [0, Errno.ENOMEM], JSON.stringify([...results]));
  await vmm.dmaUnmap(ALL);
  await vmm.dmaMap({ flags: READ_WRITE, offset: 0, address: 0, size: PAGE }, sparse);
});
