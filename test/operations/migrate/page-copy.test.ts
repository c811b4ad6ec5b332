// SPDX-License-Identifier: Apache-2.0
/** Pages from one device server's memory to another's: by their files, or by messages where those cannot be had. */

import { readSync, writeSync } from 'node:fs';
import t from 'tap';
import { PageCopier } from '../../../src/operations/migrate/page-copy.js';
import { Command, DmaMapFlag } from '../../../src/wire/index.js';
import { memfd } from '../../support/memory.js';
import { dmaMap, dmaUnmap } from '../../support/payloads.js';
import { serveScratch, type Test } from '../../support/served.js';

const PAGE = 4096;
const SIZE = 8 * 2 ** 20;
const AT = 0x40000000;

/** A server with memory of a file of its own. @param flags of the DMA_MAP, `FILE_IO` for one that gives no file away */
async function end(t: Test, fill: number, flags = 0) {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const fd = memfd(SIZE);
  t.teardown(() => fd.close());
  writeSync(fd.number, Buffer.alloc(SIZE, fill));
  await vmm.request(Command.DMA_MAP, [dmaMap(AT, SIZE, 3 | flags)], () => {}, { fds: [fd] });
  const byte = (page: number): number => {
    const target = Buffer.alloc(1);
    readSync(fd.number, target, 0, 1, page * PAGE + 17);
    return target[0]!;
  };
  const put = (page: number, value: number): void => {
    writeSync(fd.number, Buffer.alloc(PAGE, value), 0, PAGE, page * PAGE);
  };
  return { manager: await served.manager(), byte, put, vmm };
}

for (const way of ['mapped', 'messages'] as const) {
  t.test(`pages are copied, ${way}`, async (t) => {
    const from = await end(t, 1);
    const to = await end(t, 2, way === 'mapped' ? 0 : DmaMapFlag.FILE_IO);
    const copier = new PageCopier(from.manager, to.manager);
    t.teardown(() => copier.close());
    await copier.rehearse();
    t.ok((copier.bytesPerMs ?? 0) > 0, 'the rate is known before anything is copied');
    t.equal(copier.way, way);
    for (const page of [0, 1, 2, 700, 2047]) t.equal(to.byte(page), 2, 'a rehearsal changes nothing');

    from.put(700, 7);
    const ranges = [
      { iova: AT, length: 2 * PAGE },
      { iova: AT + 700 * PAGE, length: PAGE },
      { iova: AT + 2047 * PAGE, length: PAGE },
    ];
    await copier.sample(ranges, new AbortController().signal);
    t.equal(to.byte(2), 2, 'a sample takes those pages and no others: the VM runs');
    t.ok((await copier.copy(ranges)) >= 4 * PAGE);
    const found = [0, 1, 2, 699, 700, 701, 2046, 2047].map((page) => to.byte(page));
    t.same(found, [1, 1, 2, 2, 7, 2, 2, 1]);
  });
}

t.test('what moves is found again, and what is gone is an error', async (t) => {
  const [from, to] = [await end(t, 1), await end(t, 2)];
  const copier = new PageCopier(from.manager, to.manager);
  t.teardown(() => copier.close());
  await copier.copy([{ iova: AT, length: PAGE }]);
  t.equal(copier.way, 'mapped');
  await to.vmm.request(Command.DMA_UNMAP, [dmaUnmap(AT, SIZE)], () => {});
  await t.rejects(copier.copy([{ iova: AT, length: PAGE }]), { code: 'DEVSTATE_E_REFUSED' });
});
