// SPDX-License-Identifier: Apache-2.0
/** The ranges that a relay has: found as by looking at each, and in no time although there are as many as there may be. */

import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { Client } from '../../src/client/index.js';
import { DmaMaps } from '../../src/relay/dma-maps.js';
import { DEFAULT_MAX_DMA_MAPS, DmaUnmapFlag, Errno, RequestError } from '../../src/wire/index.js';
import { Devstate } from '../e2e/harness/devstate-process.js';
import { memfd } from '../support/memory.js';
import { outcome, serveScratch, socketFolder } from '../support/served.js';

const PAGE = 4096;

function rangeOf(page: number, pages: number) {
  return { address: page * PAGE, size: pages * PAGE, offset: 0, flags: 3 };
}

t.test('overlaps are those of a list that is looked through', async () => {
  const range = fc.tuple(fc.integer({ min: 0, max: 60 }), fc.integer({ min: 1, max: 8 }));
  const step = fc.tuple(range, fc.constantFrom('add', 'remove', 'clear', 'again'));
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const maps = new DmaMaps();
      let list: ReturnType<typeof rangeOf>[] = [];
      for (const [[page, pages], what] of steps) {
        const request = rangeOf(page, pages);
        const end = request.address + request.size;
        const overlaps = list.some(({ address, size }) => address < end && request.address < address + size);
        if (maps.overlaps(request) !== overlaps) return false;
        if (what === 'add' && !overlaps) {
          maps.add(request, undefined);
          list.push(request);
        } else if (what === 'again' && list.length > 0) {
          const same = list[page % list.length]!;
          maps.add(same, undefined);
        } else if (what === 'remove' && list.length > 0) {
          const [gone] = list.splice(page % list.length, 1);
          maps.remove({ flags: 0, address: gone!.address, size: gone!.size });
        } else if (what === 'clear' && pages === 8) {
          maps.remove({ flags: DmaUnmapFlag.ALL, address: 0, size: 0 });
          list = [];
        }
        if (maps.size !== list.length) return false;
      }
      return true;
    }),
  );
});

t.test('as many ranges as there may be cost microseconds each', async (t) => {
  const maps = new DmaMaps();
  const before = process.cpuUsage();
  for (let i = 0; i < DEFAULT_MAX_DMA_MAPS; i++) {
    const range = rangeOf(2 * i + 2, 1);
    if (maps.overlaps(range)) throw new Error('nothing overlaps');
    maps.add(range, undefined);
  }
  t.throws(() => maps.read(0, new Uint8Array(1)), RequestError);
  const { user, system } = process.cpuUsage(before);
  // Looking at each of the others takes minutes.
  t.ok((user + system) / 1e6 < 10, `${(user + system) / 1e6} s`);
});

t.test(
  'a relay holds one fd for all ranges of a file, and refuses files of which it can hold no more',
  async (t) => {
    const FILES = 200;
    const served = serveScratch(t);
    const listen = join(socketFolder(t), 'relay');
    const limited = ['/bin/sh', '-c', `ulimit -n ${FILES}; exec "$0" "$@"`];
    const relay = new Devstate(['relay', '--listen', listen, '--server', served.path], limited);
    t.teardown(() => relay.end());
    await relay.saysOnStderr(/"msg":"relaying /);
    const vmm = await Client.connect(listen);
    t.teardown(() => vmm.close());
    t.equal(vmm.version.capabilities.maxDmaMaps, DEFAULT_MAX_DMA_MAPS, "ranges are the server's to limit");
    const one = memfd(PAGE);
    t.teardown(() => one.close());
    let at = 0;
    const map = (fd = one): Promise<number | string> => outcome(vmm.dmaMap(rangeOf(at++, 1), fd));
    for (let i = 0; i < 2 * FILES; i++) if ((await map()) !== 0) t.fail(`range ${i} is refused`);
    const results = new Set<number | string>();
    for (let i = 0; i < FILES; i++) {
      const fd = memfd(PAGE);
      results.add(await map(fd));
      fd.close();
    }
    t.same([...results], [0, Errno.EMFILE]);
    t.equal(await map(), 0, 'the file that it has is taken still');
    await vmm.dmaUnmap({ flags: DmaUnmapFlag.ALL, address: 0, size: 0 });
    const another = memfd(PAGE);
    t.teardown(() => another.close());
    t.equal(await map(another), 0, 'and another one, once those are gone');
  },
);
