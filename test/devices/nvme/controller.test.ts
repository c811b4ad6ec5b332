// SPDX-License-Identifier: Apache-2.0
/** Registers, life cycle, doorbells, interrupts, back-pressure. */

import { join } from 'node:path';
import t from 'tap';
import { PciRegister, PciStatus } from '../../../src/device/index.js';
import { ImageFile } from '../../../src/devices/nvme/image-file.js';
import { ConfigAccess } from '../../../src/runtime/config-access.js';
import { IrqSetFlag, PciIrq } from '../../../src/wire/index.js';
import { createRig, DATA, imageFolder, type MemoryKind, PAGE, VENDORS } from './rig.js';

const CC = 0x14;
const CSTS = 0x1c;
const noData = new Uint8Array(0);

for (const vendor of VENDORS) {
  t.test(`${vendor}: every register in every width`, async (t) => {
    const rig = createRig({ vendor, path: join(imageFolder(t), 'disk'), parameters: { queue_entries: 256 } });
    t.teardown(() => rig.image.close());
    const values: [offset: number, low: number, high: number][] = [
      [0x00, 0x3c0100ff, 0x00400020],
      [0x08, 0x00010400, 0],
      [0x10, 0, 0],
      [0x18, 0, 0],
      [0x20, 0, 0x0fff0fff],
      [0x28, 0xfffff000, 0xffffffff],
      [0x30, 0xfffff000, 0xffffffff],
      [0x38, 0, 0],
      [0xff8, 0, 0],
      [0x1000, 0, 0],
      [0x3ff8, 0, 0],
    ];
    for (const [offset] of values.slice(4)) rig.write(offset, 2 ** 64 - 2 ** 11, 8);
    rig.write(0x24, 0xffffffff);
    for (const at of [0x28, 0x2c, 0x30, 0x34]) rig.write(at, 0xffffffff);
    for (const [offset, low, high] of values) {
      const bytes = Buffer.alloc(8);
      bytes.writeUInt32LE(low);
      bytes.writeUInt32LE(high, 4);
      for (const width of [1, 2, 4, 8]) {
        for (let at = 0; at + width <= 8; at++) {
          const expected = Number(
            bytes.subarray(at, at + width).reduceRight((sum, byte) => sum * 256n + BigInt(byte), 0n),
          );
          t.equal(rig.read(offset + at, width), expected, `0x${(offset + at).toString(16)} in ${width}`);
        }
      }
    }
    // Written in parts, a register that holds a value keeps the rest of it.
    rig.write(0x28, 0, 8);
    for (let i = 0; i < 8; i++) rig.write(0x28 + i, 0x10 + i, 1);
    t.equal(rig.read(0x28), 0x13121000);
    t.equal(rig.read(0x2c), 0x17161514);
    rig.write(0x2e, 0xabcd, 2);
    t.equal(rig.read(0x2c), 0xabcd1514);
    // One that acts by its bits does only what is written.
    rig.write(0x0c, 0xff00ff00);
    rig.write(0x11, 0x0f, 1);
    t.equal(rig.read(0x0c), 0xff00f000);
    t.equal(rig.read(0x10), 0xff00f000);
    rig.write(0x0d, 0x01, 1);
    t.equal(rig.read(0x0c), 0xff00f100);
    rig.write(0x00, 0xffffffff, 8);
    rig.write(CSTS, 0xffffffff);
    t.equal(rig.read(0), 0x3c0100ff, 'read-only');
    t.equal(rig.read(CSTS), 0);
    t.throws(() => rig.read(0, 4, 2), /region 2/);
  });

  t.test(`${vendor}: MSI-X table and pending bits`, async (t) => {
    const rig = createRig({ vendor, path: join(imageFolder(t), 'disk') });
    t.teardown(() => rig.image.close());
    t.equal(rig.read(12, 4, 4), 1, 'masked at first');
    rig.write(16, 0xfee00000, 4, 4);
    rig.write(24, 0x4041, 4, 4);
    t.equal(rig.read(16, 8, 4), 0xfee00000);
    t.equal(rig.read(24, 8, 4), 0x1_0000_4041);
    rig.write(5 * 16, 0xffffffff, 4, 4);
    t.equal(rig.read(5 * 16, 4, 4), 0, 'five vectors');
    t.equal(rig.read(0x1000, 8, 4), 0);
    rig.interrupts.triggerMsix(3);
    t.equal(rig.read(0x1000, 8, 4), 8);
  });

  t.test(`${vendor}: enable, disable, shut down, reset`, async (t) => {
    const folder = imageFolder(t);
    const rig = createRig({ vendor, path: join(folder, 'disk') });
    t.teardown(() => rig.image.close());

    const bad: [string, number, number, number][] = [
      ['command set', 0x460011, 0x1f001f, 0x10_0000],
      ['arbitration', 0x460801, 0x1f001f, 0x10_0000],
      ['page size', 0x460281, 0x1f001f, 0x10_0000],
      ['queue of one entry', 0x460001, 0x1f0000, 0x10_0000],
      ['queue not on a page of 8 KiB', 0x460081, 0x1f001f, 0x10_1000],
      ['queue beyond 2^53', 0x460001, 0x1f001f, 2 ** 60],
    ];
    for (const [what, cc, aqa, asq] of bad) {
      rig.write(0x24, aqa);
      rig.write(0x28, asq, 8);
      rig.write(0x30, 0x10_4000, 8);
      rig.write(CC, cc);
      t.equal(rig.read(CSTS), 2, what);
      t.match(rig.logs.pop(), /error: fatal controller status: .*reset the controller/);
      rig.write(CC, 0);
      t.equal(rig.read(CSTS), 0);
    }

    await rig.enable();
    t.equal(rig.read(CSTS), 1);
    await rig.createPair(1);
    rig.write(CC, 0x464001);
    await rig.until('shutdown', () => rig.read(CSTS) === 9);
    rig.queue(1, { opcode: 0, nsid: 1 });
    rig.submit(1);
    await rig.disable();
    t.equal(rig.read(CSTS), 0);
    await rig.enable();
    t.match(await rig.admin({ opcode: 4, cdw10: 1 }), { status: 0x101 }, 'queues are gone');
    rig.write(CC, 0x468001);
    await rig.until('abrupt shutdown', () => rig.read(CSTS) === 9);

    new ConfigAccess(rig.device.config).write(PciRegister.COMMAND, Uint8Array.of(6, 0));
    await rig.device.reset('requested');
    t.equal(rig.read(CSTS), 0);
    t.equal(rig.read(CC), 0);
    t.equal(rig.read(0x28, 8), 0);
    t.equal(rig.device.config.command, 0);
    t.ok(rig.image.locked);
    await rig.enable();
    t.equal(rig.read(CSTS), 1);

    await rig.device.reset('aborted');
    t.notOk(rig.image.locked);

    const other = ImageFile.open({ path: rig.image.path, lock: true });
    await rig.enable();
    t.equal(rig.read(CSTS), 2, 'not enabled without the lock');
    t.match(rig.logs.pop(), /in use by another process/);
    await other.close();
    await rig.disable();
    await rig.enable();
    t.equal(rig.read(CSTS), 1);
    t.ok(rig.image.locked, 'taken on demand');

    rig.memory.remove(0x10_0000, 16 * 1024 * 1024);
    rig.queue(0, { opcode: 6 });
    rig.submit(0);
    t.equal(rig.read(CSTS), 3, 'memory that went away is fatal');
  });

  for (const kind of ['mapped', 'remote'] satisfies MemoryKind[]) {
    t.test(`${vendor}: interrupts and back-pressure, ${kind} memory`, async (t) => {
      const folder = imageFolder(t);

      t.test('INTx is a level', async (t) => {
        const rig = createRig({ vendor, kind, path: join(folder, 'intx') });
        t.teardown(() => rig.image.close());
        rig.useIntx();
        const unmask = {
          flags: IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_UNMASK,
          index: PciIrq.INTX,
          start: 0,
          count: 1,
        };
        const status = () => rig.device.config.bytes[PciRegister.STATUS]! & PciStatus.INTERRUPT;
        await rig.enable();
        rig.queue(0, { opcode: 0x0a, cdw10: 7 });
        rig.queue(0, { opcode: 0x0a, cdw10: 7 });
        rig.submit(0);
        await rig.until('INTx', () => rig.intx === 1);
        await rig.until('both completions', () => rig.guest.view.getUint32(0x4000 + 28, true) !== 0);
        t.ok(status());
        rig.poll(0);
        t.ok(rig.interrupts.intxAsserted, 'up while an entry is left');
        rig.interrupts.set(unmask, noData, []);
        t.equal(rig.intx, 2, 'signalled again when unmasked');
        rig.write(0x0c, 1);
        t.notOk(rig.interrupts.intxAsserted, 'INTMS');
        rig.write(0x10, 1);
        t.ok(rig.interrupts.intxAsserted, 'INTMC');
        new ConfigAccess(rig.device.config).write(PciRegister.COMMAND, Uint8Array.of(6, 4));
        rig.device.configWritten?.(PciRegister.COMMAND, 2);
        t.notOk(rig.interrupts.intxAsserted, 'INTx disabled in the command register');
        new ConfigAccess(rig.device.config).write(PciRegister.COMMAND, Uint8Array.of(6, 0));
        rig.device.configWritten?.(PciRegister.COMMAND, 2);
        rig.poll(0);
        t.notOk(rig.interrupts.intxAsserted, 'down when all is consumed');
        t.notOk(status());
      });

      t.test('MSI-X goes to the queue’s vector, unless the queue does not interrupt', async (t) => {
        const rig = createRig({ vendor, kind, path: join(folder, 'msix') });
        t.teardown(() => rig.image.close());
        rig.useMsix(5);
        await rig.enable();
        await rig.createPair(1, 16, { vector: 3 });
        const before = rig.vectors[3] ?? 0;
        await rig.run(1, { opcode: 0, nsid: 1 });
        await rig.until('vector 3', () => (rig.vectors[3] ?? 0) === before + 1);
        t.notOk(rig.interrupts.intxAsserted);
        await rig.admin({ opcode: 0, cdw10: 1 });
        await rig.admin({ opcode: 4, cdw10: 1 });
        const { cq, sq } = rig.ring(1);
        rig.guest.slice(cq, 256).fill(0);
        await rig.admin({ opcode: 5, prp1: cq, cdw10: 0xf0001, cdw11: 1 | (3 << 16) });
        await rig.admin({ opcode: 1, prp1: sq, cdw10: 0xf0001, cdw11: 0x10001 });
        rig.guest.rings.set(1, { sq, cq, sqSize: 16, cqSize: 16, tail: 0, head: 0, phase: 1 });
        await rig.run(1, { opcode: 0, nsid: 1 });
        t.equal(rig.vectors[3], before + 1);
      });

      t.test('a full completion queue holds completions, and the next commands', async (t) => {
        const rig = createRig({ vendor, kind, path: join(folder, 'full') });
        t.teardown(() => rig.image.close());
        rig.useMsix(5);
        await rig.enable();
        await rig.createPair(1, 64, { cqEntries: 4 });
        const expected: number[] = [];
        for (let round = 0; round < 4; round++) {
          for (let i = 0; i < 40; i++)
            expected.push(rig.queue(1, { opcode: 2, nsid: 1, prp1: DATA + i * PAGE }));
          rig.submit(1);
          if (round === 0) {
            await rig.until(
              'three completions',
              () => rig.guest.view.getUint32(0x1_4000 + 44, true) >>> 16 === 1,
            );
            t.equal(rig.guest.view.getUint32(0x1_4000 + 60, true), 0, 'the fourth entry stays free');
          }
          const got: number[] = [];
          while (got.length < 40) {
            const { cid, status } = await rig.completion(1);
            t.equal(status, 0);
            got.push(cid);
          }
          const inOrder = got.toSorted((a, b) => a - b);
          t.same(
            inOrder,
            expected.splice(0).toSorted((a, b) => a - b),
            'each once',
          );
          t.equal(rig.poll(1), undefined);
        }
      });

      t.test('deleting a submission queue drops what its full completion queue holds', async (t) => {
        const rig = createRig({ vendor, kind, path: join(folder, 'delete') });
        t.teardown(() => rig.image.close());
        rig.useMsix(5);
        await rig.enable();
        await rig.createPair(1, 64, { cqEntries: 2 });
        for (let i = 0; i < 10; i++) rig.queue(1, { opcode: 2, nsid: 1, prp1: DATA + i * PAGE });
        rig.submit(1);
        t.match(await rig.admin({ opcode: 0, cdw10: 1 }), { status: 0 });
        t.ok(rig.poll(1));
        t.equal(rig.poll(1), undefined);
        t.match(await rig.admin({ opcode: 4, cdw10: 1 }), { status: 0 });
      });

      t.test('a controller disabled in the middle of I/O is silent afterwards', async (t) => {
        const rig = createRig({ vendor, kind, path: join(folder, 'disable') });
        t.teardown(() => rig.image.close());
        rig.useMsix(5);
        await rig.enable();
        await rig.createPair(1);
        for (let i = 0; i < 50; i++) rig.queue(1, { opcode: 1, nsid: 1, prp1: DATA, cdw10: 8 * i, cdw12: 7 });
        rig.submit(1);
        await rig.disable();
        const memory = rig.guest.bytes.slice();
        const vectors = rig.vectors.slice();
        await rig.image.flush();
        await rig.until('nothing', () => true);
        t.ok(Buffer.compare(rig.guest.bytes, memory) === 0);
        t.same(rig.vectors, vectors);
        await rig.enable();
        await rig.createPair(1);
        t.match(await rig.run(1, { opcode: 2, nsid: 1, prp1: DATA }), { status: 0 });
      });
    });
  }
}
