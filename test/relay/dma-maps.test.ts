// SPDX-License-Identifier: Apache-2.0
/** The ranges that a relay has: found as by looking at each, and in no time although there are as many as there may be. */

import fc from 'fast-check';
import t from 'tap';
import { DmaMaps } from '../../src/relay/dma-maps.js';
import { DEFAULT_MAX_DMA_MAPS, DmaUnmapFlag, RequestError } from '../../src/wire/index.js';

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
