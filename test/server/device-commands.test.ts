// SPDX-License-Identifier: Apache-2.0
/** What a VMM does with a device, over a real socket: what each command answers, and each way in which it is refused. */

import t from 'tap';
import { closeAll } from '../../src/transport/index.js';
import { Command, DmaMapFlag, DmaUnmapFlag, Errno } from '../../src/wire/index.js';
import { hex, viewOf } from '../support/hex.js';
import { eventfd, MemoryPeer, memfd, signals } from '../support/memory.js';
import { access, dmaMap, dmaUnmap, u32 } from '../support/payloads.js';
import { MSIX_VECTORS, Register, SCRATCH_ID } from '../support/scratch-device.js';
import { outcome, serveScratch } from '../support/served.js';

t.test('what the device consists of', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  t.strictSame(await vmm.deviceInfo(), { argsz: 16, flags: 3, regions: 9, irqs: 5 });
  const regions = await Promise.all(Array.from({ length: 9 }, (_, index) => vmm.regionInfo(index)));
  t.strictSame(
    regions.map(({ flags, size }) => [flags, size]),
    [
      [3, 4096],
      [0, 0],
      [3, 4096],
      [0, 0],
      [0, 0],
      [0, 0],
      [0, 0],
      [3, 256],
      [0, 0],
    ],
  );
  const irqs = await Promise.all(Array.from({ length: 5 }, (_, index) => vmm.irqInfo(index)));
  t.strictSame(
    irqs.map(({ flags, count }) => [flags, count]),
    [
      [7, 1],
      [1, 0],
      [1, MSIX_VECTORS],
      [1, 1],
      [1, 1],
    ],
  );
  t.strictSame(await vmm.regionIoFds(0), { argsz: 16, entries: [], fds: [] });
  t.equal(await outcome(vmm.regionInfo(9)), Errno.EINVAL);
  t.equal(await outcome(vmm.irqInfo(5)), Errno.EINVAL);
  t.equal(await outcome(vmm.regionIoFds(1)), Errno.EINVAL);

  const raw = async (command: number, payload: Uint8Array): Promise<string> =>
    String(await outcome(vmm.request(command, [payload], () => {})));
  const info: [number, Uint8Array][] = [
    [Command.DEVICE_GET_INFO, u32(15, 0, 0, 0)],
    [Command.DEVICE_GET_INFO, u32(16, 0, 0)],
    [Command.DEVICE_GET_REGION_INFO, u32(31, 0, 0, 0, 0, 0, 0, 0)],
    [Command.DEVICE_GET_REGION_INFO, u32(32, 0, 0, 0, 0, 0, 0)],
    [Command.DEVICE_GET_REGION_INFO, u32(32, 0, 0xffffffff, 0, 0, 0, 0, 0)],
    [Command.DEVICE_GET_IRQ_INFO, u32(15, 0, 0, 0)],
    [Command.DEVICE_GET_IRQ_INFO, u32(16, 0, 0)],
    [Command.DEVICE_GET_REGION_IO_FDS, u32(15, 0, 0, 0)],
    [Command.DEVICE_GET_REGION_IO_FDS, u32(16, 1, 0, 0)],
    [Command.DEVICE_GET_REGION_IO_FDS, u32(16, 0, 0, 1)],
  ];
  for (const [command, payload] of info)
    t.equal(await raw(command, payload), `${Errno.EINVAL}`, `command ${command}`);
});

t.test('region accesses', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const id = new Uint8Array(4);
  await vmm.regionRead(0, Register.ID, id);
  t.equal(viewOf(id).getUint32(0, true), SCRATCH_ID);
  for (const length of [1, 2, 3, 4, 8, 13, 256]) {
    const data = Uint8Array.from({ length }, (_, i) => i + length);
    await vmm.regionWrite(0, Register.KEPT, data);
    const back = new Uint8Array(length);
    await vmm.regionRead(0, Register.KEPT, back);
    t.strictSame(back, data, `${length} bytes`);
  }
  const config = new Uint8Array(4);
  await vmm.regionRead(7, 0, config);
  t.strictSame(config, hex('361bff00'));
  await vmm.regionWrite(7, 4, Uint8Array.of(6));
  await vmm.regionRead(7, 4, config);
  t.equal(config[0], 6);

  const wrong: [string, number, Uint8Array][] = [
    ['past the end', Command.REGION_READ, access(4095, 0, 2)],
    ['far past the end', Command.REGION_READ, access(2 ** 52, 0, 1)],
    ['beyond 2^53', Command.REGION_READ, hex('ffffffffffffffff 00000000 01000000')],
    ['a region that is not there', Command.REGION_READ, access(0, 1, 4)],
    ['a region that cannot be', Command.REGION_READ, access(0, 99, 4)],
    ['more than a transfer', Command.REGION_READ, access(0, 0, 0xffffffff)],
    ['a request cut short', Command.REGION_READ, access(0, 0, 4).slice(0, 15)],
    ['less data than it says', Command.REGION_WRITE, access(0, 0, 4, new Uint8Array(3))],
    ['more data than it says', Command.REGION_WRITE, access(0, 0, 4, new Uint8Array(5))],
    ['a write past the end', Command.REGION_WRITE, access(4095, 0, 2, new Uint8Array(2))],
    ['config space past its end', Command.REGION_WRITE, access(255, 7, 2, new Uint8Array(2))],
    ['multi, not agreed on', 99, new Uint8Array(0)],
  ];
  for (const [what, command, payload] of wrong) {
    t.equal(await outcome(vmm.request(command, [payload], () => {})), Errno.EINVAL, what);
  }
  await vmm.request(Command.REGION_READ, [access(0, 0, 0)], (frame) =>
    t.equal(frame.length, 32, 'of nothing'),
  );
  await vmm.request(Command.REGION_WRITE, [access(0, 0, 0)], (frame) => t.equal(frame.length, 32));
});

t.test('a device that throws anything', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  served.scratch.hook = () => {
    throw new Error('bug');
  };
  t.equal(await outcome(vmm.regionRead(0, Register.SLOW, new Uint8Array(4))), Errno.EIO);
  served.scratch.hook = () => Promise.reject(new Error('bug'));
  t.equal(await outcome(vmm.regionRead(0, Register.SLOW, new Uint8Array(4))), Errno.EIO);
  served.scratch.hook = () => {};
  await vmm.regionRead(0, Register.SLOW, new Uint8Array(4));
});

t.test('REGION_WRITE_MULTI', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const writes = Array.from({ length: 60 }, (_, i) => ({ region: 0, offset: 0x100 + 4 * i, data: u32(i) }));
  await vmm.regionWriteMulti(writes);
  const back = new Uint8Array(240);
  await vmm.regionRead(0, 0x100, back);
  t.strictSame(back, u32(...writes.keys()));
  await vmm.regionWriteMulti([]);
  const at = (offset: number, length: number) => ({ region: 0, offset, data: new Uint8Array(length) });
  t.equal(await outcome(vmm.regionWriteMulti([at(0x100, 4), at(4095, 2)])), Errno.EINVAL);
  t.equal(
    await outcome(vmm.request(Command.REGION_WRITE_MULTI, [hex('0100000000000000')], () => {})),
    Errno.EINVAL,
  );
  vmm.close();

  const plain = await served.vmm({ capabilities: { writeMultiple: false } });
  t.equal(await outcome(plain.regionWriteMulti([at(0x100, 4)])), Errno.EINVAL, 'not agreed on');
  plain.close();

  const peer = new MemoryPeer();
  peer.put(0x1000, Uint8Array.of(1, 2, 3));
  const slow = await served.vmm({ dma: peer.handler });
  await slow.dmaMap({ flags: 3, offset: 0, address: 0x1000, size: 0x1000 });
  const dma = (register: number, value: number) => ({ region: 0, offset: register, data: u32(value) });
  await slow.regionWriteMulti([
    dma(Register.DMA_ADDRESS, 0x1000),
    dma(Register.DMA_LENGTH, 3),
    dma(Register.DMA_COMMAND, 1),
    dma(Register.KEPT, 0x99),
  ]);
  const moved = new Uint8Array(3);
  await slow.regionRead(2, 0, moved);
  t.strictSame(moved, Uint8Array.of(1, 2, 3), 'a write in the middle that takes its time');
  await slow.regionRead(0, Register.KEPT, moved);
  t.equal(moved[0], 0x99);
});

t.test('DMA_MAP and DMA_UNMAP', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const manager = await served.manager();
  const fd = memfd(0x4000);
  t.teardown(() => fd.close());
  const map = (payload: Uint8Array, fds = [fd]): Promise<number | string> =>
    outcome(vmm.request(Command.DMA_MAP, [payload], () => {}, { fds }));
  const unmap = (payload: Uint8Array): Promise<number | string> =>
    outcome(vmm.request(Command.DMA_UNMAP, [payload], () => {}));
  const { MMAP, FILE_IO } = DmaMapFlag;

  t.equal(await map(dmaMap(0x10000, 0x4000)), 0);
  t.equal(await map(dmaMap(0x20000, 0x4000, 3 | MMAP)), 0);
  t.equal(await map(dmaMap(0x30000, 0x4000, 3 | FILE_IO)), 0);
  t.equal(await map(dmaMap(0x40000, 0x4000), []), 0);
  t.equal(await map(dmaMap(0x50000, 0x1000, 1, 0x3000)), 0);
  t.strictSame(await manager.dmaMaps(), [
    { address: 0x10000, size: 0x4000, flags: 3 },
    { address: 0x20000, size: 0x4000, flags: 3 },
    { address: 0x30000, size: 0x4000, flags: 3 },
    { address: 0x40000, size: 0x4000, flags: 3 },
    { address: 0x50000, size: 0x1000, flags: 1 },
  ]);
  const files = await manager.dmaFiles();
  t.same(
    files?.entries,
    [
      { address: 0x10000, size: 0x4000, offset: 0, flags: 3, file: 0 },
      { address: 0x20000, size: 0x4000, offset: 0, flags: 3, file: 0 },
      { address: 0x50000, size: 0x1000, offset: 0x3000, flags: 1, file: 1 },
    ],
    'what is mapped, not what is reached by pread or by messages',
  );
  t.equal(files?.fds.length, 2, 'one file, for reading and for writing');
  closeAll(files?.fds ?? []);
  t.equal(
    await outcome(vmm.request(Command.DEVICE_FEATURE, [hex('08040000 0ad50100')], () => {})),
    Errno.ENOTTY,
    'not for the VMM',
  );
  await manager.writeMemory(0x10ffe, Uint8Array.of(1, 2, 3));
  for (const address of [0x20ffe, 0x30ffe]) {
    const back = new Uint8Array(3);
    await manager.readMemory(address, back);
    t.strictSame(back, Uint8Array.of(1, 2, 3), 'one file, seen by mmap and by pread');
  }
  t.equal(await outcome(manager.writeMemory(0x50000, Uint8Array.of(1))), Errno.EFAULT, 'not writable');
  t.equal(await outcome(manager.readMemory(0x60000, new Uint8Array(1))), Errno.EFAULT, 'not mapped');

  // More than one message may carry.
  const large = memfd(0x280000);
  t.teardown(() => large.close());
  t.equal(await map(dmaMap(0x1000000, 0x280000), [large]), 0);
  const sent = Buffer.alloc(0x27fff0, 'guest memory ');
  await manager.writeMemory(0x1000007, sent);
  const read = Buffer.alloc(sent.length);
  await manager.readMemory(0x1000007, read);
  t.ok(read.equals(sent), 'as long as it may be');
  t.equal(await outcome(manager.readMemory(0x1000011, read)), Errno.EFAULT, 'its end is not mapped');
  t.equal(await unmap(dmaUnmap(0x1000000, 0x280000)), 0);

  t.equal(await map(dmaMap(0x10000, 0x4000)), Errno.EEXIST, 'the same again');
  t.equal(await map(dmaMap(0x13fff, 0x1000)), Errno.EEXIST, 'an overlap');
  const wrong: [string, Uint8Array, (typeof fd)[]][] = [
    ['no access', dmaMap(0x80000, 0x1000, 0), [fd]],
    ['unknown flags', dmaMap(0x80000, 0x1000, 0x13), [fd]],
    ['both ways of access', dmaMap(0x80000, 0x1000, 3 | MMAP | FILE_IO), [fd]],
    ['mmap of nothing', dmaMap(0x80000, 0x1000, 3 | MMAP), []],
    ['file I/O on nothing', dmaMap(0x80000, 0x1000, 3 | FILE_IO), []],
    ['two fds', dmaMap(0x80000, 0x1000), [fd, fd]],
    ['no bytes', dmaMap(0x80000, 0), [fd]],
    ['an end beyond 2^53', dmaMap(2 ** 53 - 0x1000, 0x2000), []],
    [
      'an address beyond 2^53',
      hex('20000000 03000000 0000000000000000 00f0ffffffffffff 0010000000000000'),
      [],
    ],
    ['a file that is too short', dmaMap(0x80000, 0x5000), [fd]],
    ['31 bytes', dmaMap(0x80000, 0x1000).slice(0, 31), [fd]],
  ];
  for (const [what, payload, fds] of wrong) t.equal(await map(payload, fds), Errno.EINVAL, what);

  t.equal(await unmap(dmaUnmap(0x10000, 0x1000)), Errno.ENOENT, 'a part');
  t.equal(await unmap(dmaUnmap(0x70000, 0x1000)), Errno.ENOENT, 'nothing');
  t.equal(await unmap(dmaUnmap(0x10000, 0x4000, 4)), Errno.EINVAL, 'unknown flags');
  t.equal(await unmap(dmaUnmap(0x10000, 0x4000, 1)), Errno.EINVAL, 'a dirty bitmap belongs to protocol 1');
  t.equal(await unmap(dmaUnmap(0x10000, 0, DmaUnmapFlag.ALL)), Errno.EINVAL, 'all, and one');
  await vmm.request(Command.DMA_UNMAP, [dmaUnmap(0x10000, 0x4000)], (frame) => {
    t.strictSame(
      frame.bytes.slice(16, frame.length),
      dmaUnmap(0x10000, 0x4000),
      'the reply repeats the request',
    );
  });
  t.equal((await manager.dmaMaps()).length, 4);
  t.equal(await unmap(dmaUnmap(0, 0, DmaUnmapFlag.ALL)), 0);
  t.strictSame(await manager.dmaMaps(), []);
  t.equal(await unmap(dmaUnmap(0, 0, DmaUnmapFlag.ALL)), 0, 'all of none');
});

t.test('SET_IRQS with eventfds', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const fds = Array.from({ length: MSIX_VECTORS }, eventfd);
  t.teardown(() => closeAll(fds));
  await vmm.assignEventfds(2, fds);
  for (let vector = 0; vector < MSIX_VECTORS; vector++) await vmm.regionWrite(0, Register.RAISE, u32(vector));
  t.ok(
    fds.every((fd) => signals(fd) === 1),
    `${MSIX_VECTORS} vectors, 16 fds a message`,
  );
  await vmm.setIrqs({ flags: 0x24, index: 2, start: 3, count: 2 });
  for (const vector of [2, 3, 4, 5]) await vmm.regionWrite(0, Register.RAISE, u32(vector));
  t.strictSame(
    [2, 3, 4, 5].map((vector) => signals(fds[vector]!)),
    [1, 0, 0, 1],
    'two taken away',
  );
  await vmm.setIrqs({ flags: 0x24, index: 2, start: 3, count: 2 }, { fds: fds.slice(3, 5) });
  t.strictSame(
    [3, 4].map((vector) => signals(fds[vector]!)),
    [1, 1],
    'what was pending comes',
  );
  await vmm.setIrqs({ flags: 0x22, index: 2, start: 0, count: 3 }, { data: Uint8Array.of(1, 0, 1) });
  t.strictSame(
    [0, 1, 2].map((vector) => signals(fds[vector]!)),
    [1, 0, 1],
    'raised by the VMM',
  );
  const refused = async (
    request: Parameters<typeof vmm.setIrqs>[0],
    count: number,
  ): Promise<number | string> => outcome(vmm.setIrqs(request, { fds: fds.slice(0, count) }));
  t.equal(await refused({ flags: 0x24, index: 2, start: 0, count: 3 }, 2), Errno.EINVAL, 'too few fds');
  t.equal(await refused({ flags: 0x24, index: 2, start: 0, count: 3 }, 4), Errno.EINVAL, 'too many');
  t.equal(
    await refused({ flags: 0x21, index: 2, start: 0, count: 3 }, 3),
    Errno.EINVAL,
    'fds where none belong',
  );
  t.equal(await refused({ flags: 0x24, index: 2, start: 39, count: 2 }, 2), Errno.EINVAL, 'past the end');
  t.equal(await refused({ flags: 0x24, index: 1, start: 0, count: 1 }, 1), Errno.EINVAL, 'no MSI here');
  await vmm.setIrqs({ flags: 0x21, index: 2, start: 0, count: 0 });
  await vmm.regionWrite(0, Register.RAISE, u32(7));
  t.equal(signals(fds[7]!), 0, 'disabled');
});

t.test('INTx over the wire', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  const line = eventfd();
  t.teardown(() => line.close());
  await vmm.assignEventfds(0, [line]);
  await vmm.regionWrite(0, Register.INTX, u32(1));
  t.equal(signals(line), 1);
  const status = new Uint8Array(2);
  await vmm.regionRead(7, 6, status);
  t.equal(status[0]! & 8, 8, 'the status register shows it');
  await vmm.setIrqs({ flags: 0x11, index: 0, start: 0, count: 1 });
  t.equal(signals(line), 1, 'again, as it is unmasked and still up');
  await vmm.regionWrite(0, Register.INTX, u32(0));
  await vmm.setIrqs({ flags: 0x11, index: 0, start: 0, count: 1 });
  t.equal(signals(line), 0);
});

t.test('reset, and function level reset', async (t) => {
  const served = serveScratch(t);
  const vmm = await served.vmm();
  await vmm.regionWrite(0, Register.KEPT, Uint8Array.of(1));
  await vmm.reset();
  t.strictSame(served.scratch.takeCalls(), ['reset requested']);
  const back = new Uint8Array(1);
  await vmm.regionRead(0, Register.KEPT, back);
  t.equal(back[0], 0);
  const express = served.scratch.config.findCapability(0x10);
  await vmm.regionWrite(7, express + 8, Uint8Array.of(0x10, 0x80));
  t.strictSame(served.scratch.takeCalls(), ['reset requested'], 'by the guest');
});
