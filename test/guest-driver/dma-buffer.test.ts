// SPDX-License-Identifier: Apache-2.0
/** Buffers in guest memory and their PRPs, read back by the rules of NVMe 1.4, section 4.3; the guest's dirty log. */

import fc from 'fast-check';
import t from 'tap';
import {
  DmaBuffer,
  describeByPrps,
  GuestRam,
  PAGE_SIZE,
  PageAllocator,
} from '../../src/guest-driver/index.js';
import { readU64 } from '../../src/wire/index.js';

const RAM = 16 * 1024 * 1024;

/** The pages that a controller finds for `length` bytes: an independent reading of the specification. */
function walk(ram: GuestRam, prp1: number, prp2: number, length: number): number[] {
  const found = [prp1];
  let left = length - (PAGE_SIZE - (prp1 % PAGE_SIZE));
  if (left <= 0) return found;
  if (left <= PAGE_SIZE) return [prp1, prp2];
  let list = prp2;
  while (left > 0) {
    const entry = readU64(ram.view, ram.offset(list, 8));
    if (list % PAGE_SIZE === PAGE_SIZE - 8 && left > PAGE_SIZE) list = entry;
    else {
      found.push(entry);
      left -= PAGE_SIZE;
      list += 8;
    }
  }
  return found;
}

t.test('PRPs of any length and offset lead to the pages of the buffer', async (t) => {
  const ram = new GuestRam(RAM);
  t.teardown(() => ram.close());
  const pages = new PageAllocator(ram.base, ram.length);
  const owner = { machine: { ram, pages } };
  const length = fc.oneof(
    fc.integer({ min: 1, max: 4 * PAGE_SIZE }),
    fc.integer({ min: 510 * PAGE_SIZE, max: 515 * PAGE_SIZE }),
    fc.integer({ min: 1020 * PAGE_SIZE, max: 1027 * PAGE_SIZE }),
  );
  fc.assert(
    fc.property(length, fc.integer({ min: 0, max: PAGE_SIZE / 4 - 1 }), (length, quads) => {
      const buffer = DmaBuffer.allocate(owner, length, 4 * quads);
      const { prp1, prp2, lists } = describeByPrps(buffer, ram, pages);
      const found = walk(ram, prp1, prp2, length);
      t.same(
        found.map((address) => address - (address % PAGE_SIZE)),
        buffer.pages,
      );
      t.equal(prp1 % PAGE_SIZE, 4 * quads);
      pages.free(lists);
      buffer.free();
    }),
    { numRuns: 100 },
  );
});

t.test('content, parts and what the guest has written', async (t) => {
  const ram = new GuestRam(64 * PAGE_SIZE);
  const copy = new GuestRam(64 * PAGE_SIZE);
  t.teardown(() => {
    ram.close();
    copy.close();
  });
  const owner = { machine: { ram, pages: new PageAllocator(ram.base, ram.length) } };
  fc.assert(
    fc.property(
      fc.uint8Array({ minLength: 1, maxLength: 3 * PAGE_SIZE }),
      fc.nat({ max: 1000 }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      (data, quads, cut) => {
        const buffer = DmaBuffer.allocate(owner, data.length, 4 * quads);
        buffer.fill(data);
        const start = Math.min(Math.floor(cut * data.length), data.length - 1);
        const part = buffer.slice(start, data.length - start);
        t.same(part.bytes(), data.subarray(start));
        const touched = ram.takeTouched();
        copy.copyFrom(ram, touched);
        t.ok(Buffer.compare(copy.bytes, ram.bytes) === 0, 'the touched pages are all that changed');
        t.same(ram.takeTouched(), [], 'and are forgotten');
        buffer.free();
      },
    ),
    { numRuns: 50 },
  );
  const buffer = DmaBuffer.allocate(owner, 10);
  t.throws(() => buffer.fill(new Uint8Array(11)), RangeError);
  t.throws(() => buffer.read(new Uint8Array(1), 10), RangeError);
  t.throws(() => buffer.slice(5, 6), RangeError);
  t.throws(() => DmaBuffer.allocate(owner, 10, 2), RangeError);
  t.throws(() => ram.at(ram.base + ram.length - 1, 2), RangeError);
  t.throws(() => DmaBuffer.allocate(owner, 65 * PAGE_SIZE), { code: 'DEVSTATE_E_GUEST_MEMORY' });
});
