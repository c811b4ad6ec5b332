// SPDX-License-Identifier: Apache-2.0
/** Physical Region Pages against a naive model: a list of pages, laid out as the specification words it. */

import fc from 'fast-check';
import t from 'tap';
import type { MemoryRange } from '../../../src/device/index.js';
import { Command, CommandError } from '../../../src/devices/nvme/alder/command.js';
import { collectPrps } from '../../../src/devices/nvme/alder/prp.js';
import { DataPointer } from '../../../src/devices/nvme/birch/data-pointer.js';
import { Dword, Status } from '../../../src/devices/nvme/spec/index.js';
import { DmaTable } from '../../../src/runtime/dma-table.js';
import { Guest, MEMORY_BASE, MEMORY_SIZE, type MemoryKind, VENDORS, type Vendor } from './rig.js';

function memoryOf(guest: Guest, kind: MemoryKind): DmaTable {
  const memory = new DmaTable();
  const backing = guest.backing(kind);
  memory.add({ address: MEMORY_BASE, length: MEMORY_SIZE, readable: true, writable: true, backing });
  return memory;
}

/** A vendor's way from PRPs to ranges. @returns a status instead when the PRPs are wrong */
type Resolver = (
  memory: DmaTable,
  prp1: number,
  prp2: number,
  length: number,
  pageSize: number,
) => Promise<readonly MemoryRange[] | number>;

const resolvers: Record<Vendor, Resolver> = {
  alder: async (memory, prp1, prp2, length, pageSize) => {
    const command = new Command();
    const view = new DataView(command.words.buffer);
    view.setBigUint64(4 * Dword.PRP1, BigInt(prp1), true);
    view.setBigUint64(4 * Dword.PRP2, BigInt(prp2), true);
    try {
      return await collectPrps(memory, command, length, pageSize, []);
    } catch (error) {
      if (error instanceof CommandError) return error.status;
      throw error;
    }
  },
  birch: async (memory, prp1, prp2, length, pageSize) => {
    const pointer = new DataPointer();
    pointer.start(prp1, prp2, length, pageSize);
    while (pointer.listLength > 0) {
      const list = new Uint8Array(pointer.listLength);
      await memory.read(pointer.listAddress, list);
      pointer.feed(list);
    }
    return pointer.status === Status.SUCCESS ? pointer.ranges() : pointer.status;
  },
};

/** Each byte's address, one by one. */
function addresses(ranges: readonly MemoryRange[]): number[] {
  return ranges.flatMap(({ address, length }) =>
    Array.from({ length: length / 4 }, (_, i) => address + 4 * i),
  );
}

/**
 * Writes lists for `pages` and gives PRP2. `listOffset` entries of the first list page are skipped.
 */
function layOut(guest: Guest, pages: readonly number[], listOffset: number, pageSize: number): number {
  if (pages.length === 0) return 0;
  if (pages.length === 1) return pages[0]!;
  const perPage = pageSize / 8;
  let list = 0;
  const first = list * pageSize + listOffset * 8;
  let at = first;
  for (const [index, page] of pages.entries()) {
    if (at % pageSize === pageSize - 8 && index < pages.length - 1) {
      list++;
      guest.view.setBigUint64(at, BigInt(MEMORY_BASE + list * pageSize), true);
      at = list * pageSize;
    }
    guest.view.setBigUint64(at, BigInt(page), true);
    at += 8;
  }
  if (at > 8 * perPage * 8) throw new Error('the lists run into the data');
  return MEMORY_BASE + first;
}

for (const vendor of VENDORS) {
  const resolve = resolvers[vendor];
  for (const kind of ['mapped', 'remote'] satisfies MemoryKind[]) {
    t.test(`${vendor}: PRPs describe the pages they were made of, ${kind} memory`, async (t) => {
      const guest = new Guest();
      const memory = memoryOf(guest, kind);
      const property = fc.assert(
        fc.asyncProperty(
          fc.record({
            shift: fc.constantFrom(12, 13, 16),
            offset: fc.nat(1023),
            dwords: fc.integer({ min: 1, max: 200_000 }),
            listOffset: fc.nat(511),
            seed: fc.nat(1 << 20),
            adjacent: fc.boolean(),
          }),
          async ({ shift, offset, dwords, listOffset, seed, adjacent }) => {
            const pageSize = 1 << shift;
            const length = 4 * dwords;
            const start = offset * 4;
            const count = Math.ceil((start + length) / pageSize);
            // Data need not be inside the memory; lists must be.
            const pages = Array.from(
              { length: count },
              (_, i) => (adjacent ? seed + i : seed + ((i * 7919) % 65537) * 3) * pageSize,
            );
            const expected: number[] = [];
            for (let i = 0; i < length; i += 4) {
              expected.push(pages[Math.floor((start + i) / pageSize)]! + ((start + i) % pageSize));
            }
            const prp2 = layOut(guest, pages.slice(1), listOffset % (pageSize / 8), pageSize);
            const ranges = await resolve(memory, pages[0]! + start, prp2, length, pageSize);
            if (typeof ranges === 'number') throw new Error(`status 0x${ranges.toString(16)}`);
            const got = addresses(ranges);
            const wrong = got.findIndex((address, i) => address !== expected[i]);
            if (got.length !== expected.length || wrong >= 0)
              throw new Error(`dword ${wrong} of ${got.length}`);
            if (adjacent && ranges.length !== 1) throw new Error('adjacent pages are not one range');
          },
        ),
        { numRuns: 40 },
      );
      await t.resolves(property);
    });

    t.test(`${vendor}: rules, ${kind} memory`, async (t) => {
      const guest = new Guest();
      const memory = memoryOf(guest, kind);
      const status = async (prp1: number, prp2: number, length: number) => {
        try {
          const ranges = await resolve(memory, prp1, prp2, length, 4096);
          return typeof ranges === 'number' ? ranges : 0;
        } catch (error) {
          return String(error);
        }
      };
      const list = MEMORY_BASE + 0x1000;
      const entry = (index: number, value: number) =>
        guest.view.setBigUint64(0x1000 + 8 * index, BigInt(value), true);
      for (let i = 0; i < 512; i++) entry(i, 0x10_0000 + 4096 * i);
      const invalid = Status.PRP_OFFSET_INVALID;
      t.equal(await status(0x1001, 0, 512), invalid, 'PRP1 not on a dword');
      t.equal(await status(0x1002, 0, 512), invalid);
      t.equal(await status(0x1004, 0x2001, 4092), 0, 'PRP2 is not looked at when PRP1 suffices');
      t.equal(await status(0x1004, 0x2004, 4096), invalid, 'PRP2 with an offset');
      t.equal(await status(0x1000, list + 4, 12288), invalid, 'a list not on a qword');
      t.equal(await status(0x1000, list, 12288), 0);
      entry(1, 0x10_1010);
      t.equal(await status(0x1000, list, 12288), invalid, 'an entry with an offset');
      entry(1, 0x10_1000);
      entry(511, list + 8);
      t.equal(await status(0x1000, list + 8 * 510, 4 * 4096), invalid, 'a chain with an offset');
      entry(511, list);
      t.equal(await status(0x1000, list + 8 * 510, 4 * 4096), 0, 'a chain');
      t.equal(
        await status(0x1000, list, 4096 + 4096 * 511 * 3),
        0,
        'a chain that goes in circles ends with the data',
      );
      t.match(await status(0x1000, 0x9000_0000, 12288), /not mapped/, 'a list at nowhere');
      entry(0, 2 ** 60);
      t.equal(await status(0x1000, list, 12288), Status.DATA_TRANSFER_ERROR, 'beyond 2^53');
      t.equal(await status(2 ** 62, 0, 512), Status.DATA_TRANSFER_ERROR);
      t.equal(await status(0x1000, 2 ** 62, 12288), Status.DATA_TRANSFER_ERROR);
    });
  }
}
