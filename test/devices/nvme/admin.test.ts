// SPDX-License-Identifier: Apache-2.0
/** Admin commands: what they return, and every error status they end with. */

import { join } from 'node:path';
import t from 'tap';
import { LogPage, namespaceIdentity, Status } from '../../../src/devices/nvme/spec/index.js';
import {
  type CommandFields,
  createRig,
  DATA,
  imageFolder,
  type MemoryKind,
  type Rig,
  VENDORS,
  type Vendor,
} from './rig.js';

const IO_SQ = DATA + 0x40_0000;
const IO_CQ = DATA + 0x41_0000;

/** Opcode and fields → status; I/O queue pair 1 exists, as do completion queues 1 and 2. */
const statusTable: [string, CommandFields, number][] = [
  ['unknown opcode', { opcode: 0x7f }, Status.INVALID_OPCODE],
  ['namespace management', { opcode: 0x0d }, Status.INVALID_OPCODE],
  ['fused', { opcode: 6, cdw10: 1, flags: 0x100 }, Status.INVALID_FIELD],
  ['SGL', { opcode: 6, cdw10: 1, flags: 0x4000 }, Status.INVALID_FIELD],
  ['identify namespace 0', { opcode: 6, cdw10: 0, nsid: 0 }, Status.INVALID_NAMESPACE],
  ['identify namespace 2', { opcode: 6, cdw10: 0, nsid: 2 }, Status.INVALID_NAMESPACE],
  ['identify all namespaces', { opcode: 6, cdw10: 0, nsid: 0xffffffff }, Status.INVALID_NAMESPACE],
  ['identify list above the last', { opcode: 6, cdw10: 2, nsid: 0xfffffffe }, Status.INVALID_NAMESPACE],
  ['identify descriptors of none', { opcode: 6, cdw10: 3, nsid: 7 }, Status.INVALID_NAMESPACE],
  ['identify for the ZNS command set', { opcode: 6, cdw10: 6, cdw11: 0x02000000 }, Status.INVALID_FIELD],
  ['identify namespace granularity', { opcode: 6, cdw10: 0x16 }, Status.INVALID_FIELD],
  ['identify to an odd address', { opcode: 6, cdw10: 1, prp1: DATA + 2 }, Status.PRP_OFFSET_INVALID],
  [
    'identify over a bad PRP2',
    { opcode: 6, cdw10: 1, prp1: DATA + 4, prp2: DATA + 8 },
    Status.PRP_OFFSET_INVALID,
  ],
  ['identify to nowhere', { opcode: 6, cdw10: 1, prp1: 0x7000_0000 }, Status.DATA_TRANSFER_ERROR],
  ['identify beyond 2^53', { opcode: 6, cdw10: 1, prp1: 2 ** 60 }, Status.DATA_TRANSFER_ERROR],
  [
    'completion queue 0',
    { opcode: 5, prp1: IO_CQ, cdw10: 0x10000, cdw11: 3 },
    Status.INVALID_QUEUE_IDENTIFIER,
  ],
  [
    'completion queue 1 again',
    { opcode: 5, prp1: IO_CQ, cdw10: 0x10001, cdw11: 3 },
    Status.INVALID_QUEUE_IDENTIFIER,
  ],
  [
    'completion queue too many',
    { opcode: 5, prp1: IO_CQ, cdw10: 0x10005, cdw11: 3 },
    Status.INVALID_QUEUE_IDENTIFIER,
  ],
  [
    'completion queue of one entry',
    { opcode: 5, prp1: IO_CQ, cdw10: 0x00003, cdw11: 3 },
    Status.INVALID_QUEUE_SIZE,
  ],
  [
    'completion queue too long',
    { opcode: 5, prp1: IO_CQ, cdw10: 0x4000003, cdw11: 3 },
    Status.INVALID_QUEUE_SIZE,
  ],
  ['completion queue scattered', { opcode: 5, prp1: IO_CQ, cdw10: 0x10003, cdw11: 2 }, Status.INVALID_FIELD],
  [
    'completion queue unaligned',
    { opcode: 5, prp1: IO_CQ + 16, cdw10: 0x10003, cdw11: 3 },
    Status.PRP_OFFSET_INVALID,
  ],
  [
    'completion queue beyond 2^53',
    { opcode: 5, prp1: 2 ** 61, cdw10: 0x10003, cdw11: 3 },
    Status.INVALID_FIELD,
  ],
  [
    'vector too high',
    { opcode: 5, prp1: IO_CQ, cdw10: 0x10003, cdw11: 0x50003 },
    Status.INVALID_INTERRUPT_VECTOR,
  ],
  [
    'submission queue 0',
    { opcode: 1, prp1: IO_SQ, cdw10: 0x10000, cdw11: 0x10001 },
    Status.INVALID_QUEUE_IDENTIFIER,
  ],
  [
    'submission queue 1 again',
    { opcode: 1, prp1: IO_SQ, cdw10: 0x10001, cdw11: 0x10001 },
    Status.INVALID_QUEUE_IDENTIFIER,
  ],
  [
    'submission queue of one entry',
    { opcode: 1, prp1: IO_SQ, cdw10: 0x00002, cdw11: 0x10001 },
    Status.INVALID_QUEUE_SIZE,
  ],
  [
    'submission queue scattered',
    { opcode: 1, prp1: IO_SQ, cdw10: 0x10002, cdw11: 0x10000 },
    Status.INVALID_FIELD,
  ],
  [
    'submission queue unaligned',
    { opcode: 1, prp1: IO_SQ + 64, cdw10: 0x10002, cdw11: 0x10001 },
    Status.PRP_OFFSET_INVALID,
  ],
  [
    'completed in the admin queue',
    { opcode: 1, prp1: IO_SQ, cdw10: 0x10002, cdw11: 0x00001 },
    Status.INVALID_QUEUE_IDENTIFIER,
  ],
  [
    'completed in no queue',
    { opcode: 1, prp1: IO_SQ, cdw10: 0x10002, cdw11: 0x40001 },
    Status.COMPLETION_QUEUE_INVALID,
  ],
  [
    'completed beyond all queues',
    { opcode: 1, prp1: IO_SQ, cdw10: 0x10002, cdw11: 0x90001 },
    Status.INVALID_QUEUE_IDENTIFIER,
  ],
  ['delete submission queue 0', { opcode: 0, cdw10: 0 }, Status.INVALID_QUEUE_IDENTIFIER],
  ['delete submission queue 3', { opcode: 0, cdw10: 3 }, Status.INVALID_QUEUE_IDENTIFIER],
  ['delete completion queue 0', { opcode: 4, cdw10: 0 }, Status.INVALID_QUEUE_IDENTIFIER],
  ['delete completion queue 4', { opcode: 4, cdw10: 4 }, Status.INVALID_QUEUE_IDENTIFIER],
  ['delete completion queue in use', { opcode: 4, cdw10: 1 }, Status.INVALID_QUEUE_DELETION],
  ['feature that does not exist', { opcode: 0x0a, cdw10: 0x7d }, Status.INVALID_FIELD],
  ['feature selection that does not exist', { opcode: 0x0a, cdw10: 0x406 }, Status.INVALID_FIELD],
  ['feature of a vector that does not exist', { opcode: 0x0a, cdw10: 0x09, cdw11: 5 }, Status.INVALID_FIELD],
  [
    'threshold of a sensor that does not exist',
    { opcode: 0x0a, cdw10: 0x04, cdw11: 0x10000 },
    Status.INVALID_FIELD,
  ],
  ['set a feature that does not exist', { opcode: 9, cdw10: 0x10 }, Status.INVALID_FIELD],
  ['set a feature for good', { opcode: 9, cdw10: 0x80000006 }, Status.FEATURE_NOT_SAVEABLE],
  ['set power state 1', { opcode: 9, cdw10: 2, cdw11: 1 }, Status.INVALID_FIELD],
  ['set a threshold of a third kind', { opcode: 9, cdw10: 4, cdw11: 0x200000 }, Status.INVALID_FIELD],
  ['set a vector that does not exist', { opcode: 9, cdw10: 9, cdw11: 0x10005 }, Status.INVALID_FIELD],
  [
    'number of queues while there are some',
    { opcode: 9, cdw10: 7, cdw11: 0x30003 },
    Status.COMMAND_SEQUENCE_ERROR,
  ],
  ['log page that does not exist', { opcode: 2, cdw10: 0x7f }, Status.INVALID_LOG_PAGE],
  ['log page of a namespace', { opcode: 2, cdw10: 0x10002, nsid: 1 }, Status.INVALID_FIELD],
  ['log page beyond its end', { opcode: 2, cdw10: 0x10002, cdw12: 516 }, Status.INVALID_FIELD],
  ['log page at an odd offset', { opcode: 2, cdw10: 0x10002, cdw12: 2 }, Status.INVALID_FIELD],
  ['log page longer than MDTS', { opcode: 2, cdw10: 0xffff0002, cdw11: 0xffff }, Status.INVALID_FIELD],
];

const ioStatusTable: [string, CommandFields, number][] = [
  ['unknown opcode', { opcode: 0x55, nsid: 1 }, Status.INVALID_OPCODE],
  ['fused', { opcode: 2, nsid: 1, flags: 0x200 }, Status.INVALID_FIELD],
  ['read of namespace 0', { opcode: 2, nsid: 0 }, Status.INVALID_NAMESPACE],
  ['write to all namespaces', { opcode: 1, nsid: 0xffffffff }, Status.INVALID_NAMESPACE],
  ['flush of namespace 9', { opcode: 0, nsid: 9 }, Status.INVALID_NAMESPACE],
  ['read at the end', { opcode: 2, nsid: 1, prp1: DATA, cdw10: 16384 }, Status.LBA_OUT_OF_RANGE],
  [
    'read across the end',
    { opcode: 2, nsid: 1, prp1: DATA, cdw10: 16383, cdw12: 1 },
    Status.LBA_OUT_OF_RANGE,
  ],
  [
    'read at the last LBA of all',
    { opcode: 2, nsid: 1, prp1: DATA, cdw10: 0xffffffff, cdw11: 0xffffffff },
    Status.LBA_OUT_OF_RANGE,
  ],
  ['read longer than MDTS', { opcode: 2, nsid: 1, prp1: DATA, cdw12: 1024 }, Status.INVALID_FIELD],
  ['write at the end', { opcode: 1, nsid: 1, prp1: DATA, cdw10: 16384 }, Status.LBA_OUT_OF_RANGE],
  [
    'write zeroes across the end',
    { opcode: 8, nsid: 1, cdw10: 16000, cdw12: 0xffff },
    Status.LBA_OUT_OF_RANGE,
  ],
  [
    'compare across the end',
    { opcode: 5, nsid: 1, prp1: DATA, cdw10: 16383, cdw12: 1 },
    Status.LBA_OUT_OF_RANGE,
  ],
  ['read to nowhere', { opcode: 2, nsid: 1, prp1: 0x7000_0000 }, Status.DATA_TRANSFER_ERROR],
  ['write from nowhere', { opcode: 1, nsid: 1, prp1: 0x7000_0000 }, Status.DATA_TRANSFER_ERROR],
  [
    'list at nowhere',
    { opcode: 2, nsid: 1, prp1: DATA, prp2: 0x7000_0000, cdw12: 100 },
    Status.DATA_TRANSFER_ERROR,
  ],
  ['ranges at nowhere', { opcode: 9, nsid: 1, prp1: 0x7000_0000, cdw11: 4 }, Status.DATA_TRANSFER_ERROR],
];

async function ready(vendor: Vendor, kind: MemoryKind, path: string): Promise<Rig> {
  const rig = createRig({ vendor, kind, path });
  rig.useMsix(5);
  await rig.enable();
  return rig;
}

for (const vendor of VENDORS) {
  for (const kind of ['mapped', 'remote'] satisfies MemoryKind[]) {
    t.test(`${vendor}: admin commands, ${kind} memory`, async (t) => {
      const folder = imageFolder(t);

      t.test('statuses', async (t) => {
        const rig = await ready(vendor, kind, join(folder, 'status'));
        t.teardown(() => rig.image.close());
        await rig.createPair(1);
        await rig.createPair(2);
        t.match(await rig.admin({ opcode: 0, cdw10: 2 }), { status: 0 }, 'a submission queue is deleted');
        for (const [what, fields, status] of statusTable) {
          const completion = await rig.admin({ prp1: DATA, ...fields });
          t.equal(completion.status, status, `admin: ${what}`);
          t.ok((completion.field & 0x6000) === 0x6000, 'not to be retried, more in the log');
        }
        for (const [what, fields, status] of ioStatusTable) {
          t.equal((await rig.run(1, fields)).status, status, `I/O: ${what}`);
        }
        rig.guest.view.setUint32(DATA - 0x10_0000 + 4, 2, true);
        rig.guest.view.setBigUint64(DATA - 0x10_0000 + 8, 16383n, true);
        t.match(await rig.run(1, { opcode: 9, nsid: 1, prp1: DATA, cdw11: 4 }), {
          status: Status.LBA_OUT_OF_RANGE,
        });

        const { result } = await rig.admin({ opcode: 2, nsid: 0xffffffff, prp1: DATA, cdw10: 0x7f0001 });
        t.equal(result, 0);
        const entry = rig.guest.view;
        const total = statusTable.length + ioStatusTable.length + 1;
        t.equal(entry.getUint32(DATA - 0x10_0000, true), total, 'the error log counts them all');
        t.equal(entry.getUint16(DATA - 0x10_0000 + 8, true), 1, 'its newest entry is of queue 1');
        t.equal((entry.getUint16(DATA - 0x10_0000 + 12, true) >> 1) & 0x7ff, Status.LBA_OUT_OF_RANGE);
        t.equal(entry.getUint32(DATA - 0x10_0000 + 64, true), total - 1);
      });

      t.test('identify', async (t) => {
        const rig = await ready(vendor, kind, join(folder, 'identify'));
        t.teardown(() => rig.image.close());
        const data = () => Buffer.from(rig.guest.slice(DATA, 4096));
        const identify = async (cns: number, nsid = 0, cdw11 = 0) =>
          (await rig.admin({ opcode: 6, cdw10: cns, nsid, cdw11, prp1: DATA })).status;

        t.equal(await identify(1), 0);
        t.equal(data().toString('latin1', 4, 24), 'DEVSTATE0001        ');
        t.equal(data().toString('latin1', 24, 64).trim(), 'devstate NVMe');
        t.equal(data()[77], 7);
        t.equal(data().readUInt32LE(80), 0x10400);
        t.equal(data().readUInt32LE(516), 1);
        t.match(data().toString('latin1', 768, 1024), /^nqn\.2014-08\.org\.nvmexpress:uuid:[0-9a-f-]{36}\0/);

        t.equal(await identify(0, 1), 0);
        t.equal(data().readBigUInt64LE(0), 16384n);
        t.equal(data()[130], 9);
        const { nguid, eui64 } = namespaceIdentity('DEVSTATE0001');
        t.ok(data().subarray(104, 120).equals(nguid));
        t.ok(data().subarray(120, 128).equals(eui64));

        t.equal(await identify(2, 0), 0);
        t.same([data().readUInt32LE(0), data().readUInt32LE(4)], [1, 0]);
        t.equal(await identify(2, 1), 0);
        t.equal(data().readUInt32LE(0), 0, 'none after the last');

        t.equal(await identify(3, 1), 0);
        t.ok(
          data()
            .subarray(0, 12)
            .equals(Buffer.from([1, 8, 0, 0, ...eui64])),
        );
        t.ok(
          data()
            .subarray(12, 36)
            .equals(Buffer.from([2, 16, 0, 0, ...nguid, 0, 0, 0, 0])),
        );

        for (const cns of [5, 6]) {
          t.equal(await identify(cns, 1), 0);
          t.ok(data().every((byte) => byte === 0));
        }
      });

      t.test('features', async (t) => {
        const rig = await ready(vendor, kind, join(folder, 'features'));
        t.teardown(() => rig.image.close());
        const get = (id: number, cdw11 = 0, select = 0) =>
          rig.admin({ opcode: 0x0a, cdw10: id | (select << 8), cdw11 });
        const set = (id: number, cdw11: number) => rig.admin({ opcode: 9, cdw10: id, cdw11 });
        const cases: [id: number, written: number, expected: number, initial: number][] = [
          [1, 0xffffffff, 0xffffff07, 0],
          [2, 0xe0, 0xe0, 0],
          [5, 0xffffffff, 0xffff, 0],
          [6, 0, 0, 1],
          [8, 0x1234, 0x1234, 0],
          [10, 1, 1, 0],
          [11, 0xffffffff, 0xff, 0],
        ];
        for (const [id, written, expected, initial] of cases) {
          t.equal((await get(id)).result, initial, `feature ${id} at first`);
          t.equal((await set(id, written)).status, 0);
          t.equal((await get(id)).result, expected, `feature ${id} when set`);
          t.equal((await get(id, 0, 1)).result, initial, 'default');
          t.equal((await get(id, 0, 2)).result, initial, 'saved');
          t.equal((await get(id, 0, 3)).result, 4, 'capabilities');
        }
        t.equal((await set(7, 0x00010001)).result, 0x00030003);
        t.equal((await get(7)).result, 0x00030003);
        t.equal((await set(7, 0xffff)).status, Status.INVALID_FIELD);
        t.equal((await set(9, 0x10002)).status, 0);
        t.equal((await get(9, 2)).result, 0x10002);
        t.equal((await get(9, 3)).result, 3);
        t.equal((await set(9, 2)).status, 0);
        t.equal((await get(9, 2)).result, 2);
        t.equal((await set(4, 400)).status, 0);
        t.equal((await set(4, 0xf0000 | 0x100000 | 7)).status, 0);
        t.equal((await get(4)).result, 400);
        t.equal((await get(4, 0x100000)).result, 7);
        await rig.disable();
        await rig.enable();
        t.equal((await get(4)).result, 343, 'a controller reset brings the defaults back');
        t.equal((await get(6)).result, 1);
      });

      t.test('log pages', async (t) => {
        const rig = await ready(vendor, kind, join(folder, 'logs'));
        t.teardown(() => rig.image.close());
        await rig.createPair(1);
        const read = async (id: number, length: number, offset = 0) => {
          const cdw10 = id | ((length / 4 - 1) << 16);
          const { status } = await rig.admin({
            opcode: 2,
            nsid: 0xffffffff,
            prp1: DATA,
            cdw10,
            cdw12: offset,
          });
          t.equal(status, 0);
          return Buffer.from(rig.guest.slice(DATA, length));
        };
        await rig.run(1, { opcode: 2, nsid: 1, prp1: DATA, cdw12: 7 });
        await rig.run(1, { opcode: 1, nsid: 1, prp1: DATA, cdw12: 7 });
        const smart = await read(LogPage.SMART, 512);
        t.equal(smart.readUInt16LE(1), 303);
        t.equal(smart.readBigUInt64LE(32), 1n);
        t.equal(smart.readBigUInt64LE(64), 1n);
        t.equal(smart.readBigUInt64LE(80), 1n);
        t.ok(smart.subarray(64, 128).equals(await read(LogPage.SMART, 64, 64)), 'from an offset');
        t.equal((await read(LogPage.FIRMWARE_SLOT, 512)).toString('latin1', 8, 16), '1.0     ');
        t.ok((await read(LogPage.CHANGED_NAMESPACES, 4096)).every((byte) => byte === 0));
        const effects = await read(LogPage.COMMANDS_SUPPORTED, 2048);
        t.same([effects[4 * 6], effects[4 * 0x0d], effects[1024 + 4], effects[1024 + 8]], [1, 0, 3, 1]);
      });

      t.test('asynchronous events and abort', async (t) => {
        const rig = await ready(vendor, kind, join(folder, 'events'));
        t.teardown(() => rig.image.close());
        const cids: number[] = [];
        for (let i = 0; i < 4; i++) cids.push(rig.queue(0, { opcode: 0x0c }));
        rig.submit(0);
        t.match(await rig.admin({ opcode: 0x0c }), { status: Status.ASYNC_EVENT_LIMIT_EXCEEDED });

        const reading = (id: number) => rig.admin({ opcode: 2, nsid: 0xffffffff, prp1: DATA, cdw10: id });
        rig.write(0x1000 + 8 * 3, 1);
        t.match(
          await rig.completion(0),
          { cid: cids[0], status: 0, result: 0x010000 },
          'a doorbell of no queue',
        );
        rig.write(0x1000, 32);
        t.match(await reading(1), { status: 0 });
        t.equal(rig.poll(0), undefined, 'an event that was pending for a page is over when the page is read');
        rig.write(0x1004, 31);
        t.match(
          await rig.completion(0),
          { cid: cids[1], result: 0x010100 },
          'a doorbell beyond what was posted',
        );

        await rig.admin({ opcode: 9, cdw10: 11, cdw11: 2 });
        const setting = rig.queue(0, { opcode: 9, cdw10: 4, cdw11: 300 });
        rig.submit(0);
        const two = [await rig.completion(0), await rig.completion(0)].sort((a, b) => a.cid - b.cid);
        t.match(
          two,
          [
            { cid: cids[2], result: 0x020101 },
            { cid: setting, status: 0 },
          ],
          'over the temperature',
        );
        await reading(2);

        const aborting = rig.queue(0, { opcode: 8, cdw10: cids[3]! << 16 });
        rig.submit(0);
        const aborted = [await rig.completion(0), await rig.completion(0)];
        t.match(
          aborted.find(({ cid }) => cid === cids[3]),
          { status: Status.ABORT_REQUESTED },
        );
        t.match(
          aborted.find(({ cid }) => cid === aborting),
          { status: 0, result: 0 },
        );
        t.match(
          await rig.admin({ opcode: 8, cdw10: 0x12340000 }),
          { status: 0, result: 1 },
          'nothing to abort',
        );
      });
    });
  }
}
