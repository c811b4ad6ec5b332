// SPDX-License-Identifier: Apache-2.0
/** Regions that a client maps or signals: capabilities, the rules of argsz, fds that are really shared. */

import t from 'tap';
import { native, Protection } from '../../src/native/index.js';
import type { ServedRegion } from '../../src/server/index.js';
import { closeAll } from '../../src/transport/index.js';
import { Command, decodeRegionInfo, Errno, IoFdType } from '../../src/wire/index.js';
import { viewOf } from '../support/hex.js';
import { eventfd, memfd, signals } from '../support/memory.js';
import { u32 } from '../support/payloads.js';
import { PlainServed } from '../support/plain-served.js';
import { outcome, Served } from '../support/served.js';

const READ_WRITE = 3;

t.test('sparse areas', async (t) => {
  const fd = memfd(0x8000);
  t.teardown(() => fd.close());
  const areas = [
    { offset: 0x1000, size: 0x1000 },
    { offset: 0x3000, size: 0x1000 },
  ];
  const region: ServedRegion = {
    size: 0x4000,
    flags: READ_WRITE,
    memory: { fd, offset: 0x2000, areas },
    type: { type: 0x8086, subtype: 2 },
  };
  const served = new Served(t, new PlainServed([undefined, region]));
  const raw = await served.raw();
  raw.keepFds = true;
  await raw.version();
  for (const argsz of [32, 95]) {
    const reply = await raw.call(Command.DEVICE_GET_REGION_INFO, u32(argsz, 0, 1, 0, 0, 0, 0, 0));
    const info = decodeRegionInfo(viewOf(reply.payload), 0, reply.payload.length);
    t.equal(info.argsz, 96, 'told what is needed');
    t.equal(info.flags, READ_WRITE | 4 | 8);
    t.equal(reply.payload.length, 32);
    t.equal(reply.fds.length, 0, 'no fd yet');
  }
  const full = await raw.call(Command.DEVICE_GET_REGION_INFO, u32(4096, 0, 1, 0, 0, 0, 0, 0));
  t.equal(full.payload.length, 96);
  t.equal(full.fds.length, 1);
  closeAll(full.fds);
  raw.close();

  const vmm = await served.vmm();
  const { fd: shared, ...info } = await vmm.regionInfo(1);
  t.strictSame(info, {
    argsz: 96,
    flags: 15,
    index: 1,
    size: 0x4000,
    offset: 0x2000,
    type: { type: 0x8086, subtype: 2 },
    sparseAreas: areas,
  });
  t.ok(shared?.isOpen);
  const ours = native.map(fd.number, 0x3000, 0x1000, Protection.readWrite);
  const theirs = native.map(
    shared!.number,
    info.offset + areas[0]!.offset,
    areas[0]!.size,
    Protection.readWrite,
  );
  if (typeof ours === 'number' || typeof theirs === 'number') throw new Error('cannot map');
  new Uint8Array(theirs.window(0, 16) as ArrayBuffer).fill(0x77);
  t.equal(new Uint8Array(ours.window(0, 16) as ArrayBuffer)[15], 0x77, 'one memory');
  ours.unmap();
  theirs.unmap();
  shared?.close();
});

t.test('a region that is mapped as a whole comes with its fd at once', async (t) => {
  const fd = memfd(0x1000);
  t.teardown(() => fd.close());
  const region: ServedRegion = { size: 0x1000, flags: READ_WRITE, memory: { fd, offset: 0 } };
  const served = new Served(t, new PlainServed([region]));
  const vmm = await served.vmm();
  const { fd: shared, ...info } = await vmm.regionInfo(0);
  t.strictSame(info, { argsz: 32, flags: 7, index: 0, size: 0x1000, offset: 0 });
  t.ok(shared?.isOpen);
  shared?.close();
});

t.test('io fds, each sent once', async (t) => {
  const fds = [eventfd(), eventfd()];
  t.teardown(() => closeAll(fds));
  const entry = (offset: number, fd: (typeof fds)[0], data: bigint) => ({
    offset,
    size: 4,
    fd,
    type: IoFdType.IOEVENTFD,
    flags: 1,
    data,
  });
  const ioFds = [
    entry(0x1000, fds[0]!, 1n),
    entry(0x1004, fds[1]!, 2n),
    entry(0x1008, fds[0]!, 2n ** 64n - 1n),
  ];
  const served = new Served(t, new PlainServed([{ size: 0x2000, flags: READ_WRITE, ioFds }]));
  const vmm = await served.vmm();
  const answer = await vmm.regionIoFds(0);
  t.strictSame(
    answer.entries.map(({ offset, fdIndex, data }) => [offset, fdIndex, data]),
    [
      [0x1000, 0, 1n],
      [0x1004, 1, 2n],
      [0x1008, 0, 2n ** 64n - 1n],
    ],
  );
  t.equal(answer.fds.length, 2);
  native.eventfdSignal(answer.fds[1]!.number);
  t.strictSame(fds.map(signals), [0, 1], "they are the device's own");
  closeAll(answer.fds);
  vmm.close();

  const few = await served.vmm({ capabilities: { maxMsgFds: 1 } });
  t.equal(await outcome(few.regionIoFds(0)), Errno.E2BIG, 'more than the client can take');
});
