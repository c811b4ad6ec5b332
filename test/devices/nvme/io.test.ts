// SPDX-License-Identifier: Apache-2.0
/** The data path, on mapped and on remote guest memory. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { Status } from '../../../src/devices/nvme/spec/index.js';
import { createRig, DATA, imageFolder, type MemoryKind, PAGE, type Rig, VENDORS } from './rig.js';

const READ = 2;
const WRITE = 1;

/** Transfers `count` blocks at `lba` through one contiguous buffer, with a PRP list when it takes more than two pages. */
function transfer(rig: Rig, opcode: number, lba: number, count: number, address: number) {
  const pages = Math.ceil(((address % PAGE) + count * 512) / PAGE);
  const second = address - (address % PAGE) + PAGE;
  let prp2 = pages > 1 ? second : 0;
  if (pages > 2) {
    prp2 = DATA + 0x80_0000;
    for (let i = 0; i < pages - 1; i++) {
      rig.guest.view.setBigUint64(prp2 - 0x10_0000 + 8 * i, BigInt(second + PAGE * i), true);
    }
  }
  return { opcode, nsid: 1, prp1: address, prp2, cdw10: lba, cdw12: count - 1 };
}

for (const vendor of VENDORS) {
  for (const kind of ['mapped', 'remote'] satisfies MemoryKind[]) {
    t.test(`${vendor}: data path, ${kind} memory`, async (t) => {
      const path = join(imageFolder(t), 'disk');
      const rig = createRig({ vendor, kind, path });
      t.teardown(() => rig.image.close());
      rig.useMsix(5);
      await rig.enable();
      await rig.createPair(1);

      t.test('writes and reads back, in every shape of PRPs', async (t) => {
        const shapes = [
          [0, 1],
          [512, 7],
          [2048, 8],
          [0, 16],
          [3584, 100],
          [0, 1024],
        ] as const;
        for (const [offset, count] of shapes) {
          const source = rig.guest.slice(DATA + offset, count * 512);
          for (let i = 0; i < source.length; i++) source[i] = (i * 7 + count) & 0xff;
          const target = rig.guest.slice(DATA + 0x20_0000 + offset, count * 512);
          target.fill(0xee);
          t.match(await rig.run(1, transfer(rig, WRITE, 100, count, DATA + offset)), { status: 0 });
          t.match(await rig.run(1, transfer(rig, READ, 100, count, DATA + 0x20_0000 + offset)), {
            status: 0,
          });
          t.ok(Buffer.compare(source, target) === 0, `${count} blocks at offset ${offset}`);
          t.ok(
            Buffer.compare(readFileSync(path).subarray(51200, 51200 + source.length), source) === 0,
            'in the image',
          );
        }
      });

      t.test('flush, FUA, compare, write zeroes, deallocate', async (t) => {
        const source = rig.guest.slice(DATA, 8192).fill(0x5a);
        const fua = { ...transfer(rig, WRITE, 0, 16, DATA), cdw12: 0x4000000f };
        t.match(await rig.run(1, fua), { status: 0 });
        t.match(await rig.run(1, { opcode: 0, nsid: 1 }), { status: 0 });
        t.match(await rig.run(1, { opcode: 0, nsid: 0xffffffff }), { status: 0 });
        t.match(await rig.run(1, transfer(rig, 5, 0, 16, DATA)), { status: 0 });
        source[8191] = 0;
        t.match(await rig.run(1, transfer(rig, 5, 0, 16, DATA)), { status: Status.COMPARE_FAILURE });
        t.match(await rig.run(1, { opcode: 8, nsid: 1, cdw10: 1, cdw12: 1 }), { status: 0 });
        t.match(await rig.run(1, { opcode: 8, nsid: 1, cdw10: 4, cdw12: 0x42000000 }), { status: 0 });
        rig.guest.view.setUint32(0x10_0000 + 4, 2, true);
        rig.guest.view.setBigUint64(0x10_0000 + 8, 8n, true);
        t.match(await rig.run(1, { opcode: 9, nsid: 1, prp1: DATA, cdw10: 0, cdw11: 4 }), { status: 0 });
        const bytes = readFileSync(path);
        for (let block = 0; block < 16; block++) {
          const expected = [1, 2, 4, 8, 9].includes(block) ? 0 : 0x5a;
          t.equal(bytes[block * 512 + 100], expected, `block ${block}`);
        }
      });

      t.test('many commands at once complete once each, with head reports', async (t) => {
        const cids = new Set<number>();
        for (let i = 0; i < 63; i++)
          cids.add(rig.queue(1, transfer(rig, i % 2 === 0 ? READ : WRITE, i * 8, 8, DATA + i * PAGE)));
        rig.submit(1);
        while (cids.size > 0) {
          const { cid, status, sqid } = await rig.completion(1);
          t.equal(status, 0);
          t.equal(sqid, 1);
          t.ok(cids.delete(cid));
        }
        t.equal(rig.poll(1), undefined);
        t.ok(rig.vectors[1]! > 0);
      });
    });
  }

  t.test(`${vendor}: blocks of 4096 bytes`, async (t) => {
    const path = join(imageFolder(t), 'disk');
    const rig = createRig({ vendor, path, parameters: { lba_size: 4096, mdts: 1 } });
    t.teardown(() => rig.image.close());
    await rig.enable();
    await rig.createPair(1);
    await rig.admin({ opcode: 6, cdw10: 0, nsid: 1, prp1: DATA });
    t.equal(rig.guest.slice(DATA, 4096)[130], 12);
    t.equal(rig.guest.view.getUint32(DATA - 0x10_0000, true), 2048);
    const source = rig.guest.slice(DATA, 2 * PAGE).fill(0x77);
    const two = { nsid: 1, prp1: DATA, prp2: DATA + PAGE, cdw10: 2046, cdw12: 1 };
    t.match(await rig.run(1, { opcode: WRITE, ...two }), { status: 0 });
    t.ok(
      readFileSync(path)
        .subarray(2046 * 4096)
        .equals(source),
      'the last two blocks',
    );
    source.fill(0);
    t.match(await rig.run(1, { opcode: READ, ...two }), { status: 0 });
    t.ok(source.every((byte) => byte === 0x77));
    t.match(await rig.run(1, { opcode: READ, ...two, cdw10: 2047 }), { status: Status.LBA_OUT_OF_RANGE });
    t.match(
      await rig.run(1, { opcode: READ, ...two, cdw10: 0, cdw12: 2 }),
      { status: Status.INVALID_FIELD },
      'MDTS',
    );
  });
}
