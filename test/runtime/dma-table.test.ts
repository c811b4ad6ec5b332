// SPDX-License-Identifier: Apache-2.0
/** Guest memory: ranges, borders of ranges and windows, remote and mapped mixed, pins, the write log, faults. */

import { readSync } from 'node:fs';
import fc from 'fast-check';
import t from 'tap';
import { DmaFault, type MemoryRange } from '../../src/device/index.js';
import { native } from '../../src/native/index.js';
import { openBacking } from '../../src/runtime/backing.js';
import { DmaTable, WINDOW_SIZE } from '../../src/runtime/dma-table.js';
import { Fd } from '../../src/transport/index.js';
import { DmaMapFlag, Errno } from '../../src/wire/index.js';
import { refusal, sameBytes } from '../support/hex.js';
import { MemoryPeer, memfd } from '../support/memory.js';

const { READ, WRITE, MMAP, FILE_IO } = DmaMapFlag;
const READ_WRITE = READ | WRITE;

interface Place {
  kind: 'mapped' | 'file' | 'message';
  address: number;
  length: number;
  flags?: number;
  offset?: number;
}

/** Guest memory with these ranges, and the bytes behind each. */
function memoryWith(t: { teardown(work: () => Promise<void>): void }, places: readonly Place[]) {
  const memory = new DmaTable();
  const peer = new MemoryPeer();
  const fds: Fd[] = [];
  for (const { kind, address, length, flags = READ_WRITE, offset = 0 } of places) {
    const fd = kind === 'message' ? undefined : memfd(offset + length);
    if (fd !== undefined) fds.push(fd);
    const method = { mapped: MMAP, file: FILE_IO, message: 0 }[kind];
    const request = { flags: flags | method, offset, address, size: length };
    const backing = openBacking(request, fd, peer);
    const readable = (flags & READ) !== 0;
    memory.add({ address, length, readable, writable: (flags & WRITE) !== 0, backing });
  }
  t.teardown(async () => {
    await memory.clear();
    for (const fd of fds) fd.close();
  });
  return { memory, peer, fds };
}

const marks = (): { list: MemoryRange[]; mark(address: number, length: number): void } => {
  const list: MemoryRange[] = [];
  return { list, mark: (address, length) => void list.push({ address, length }) };
};

t.test('overlaps are refused, neighbours are not', async (t) => {
  const { memory } = memoryWith(t, [{ kind: 'message', address: 0x10000, length: 0x1000 }]);
  const backing = openBacking({ flags: 3, offset: 0, address: 0, size: 1 }, undefined, new MemoryPeer());
  const add = (address: number, length: number): number =>
    refusal(() => memory.add({ address, length, readable: true, writable: true, backing }));
  for (const [address, length] of [
    [0x10000, 0x1000],
    [0x10800, 0x10],
    [0xf000, 0x1001],
    [0xf000, 0x3000],
    [0x10fff, 0x1000],
    [0, 2 ** 52],
  ] as const) {
    t.equal(add(address, length), Errno.EEXIST, `0x${address.toString(16)}+0x${length.toString(16)}`);
  }
  t.equal(add(0xf000, 0x1000), 0, 'directly before');
  t.equal(add(0x11000, 0x1000), 0, 'directly behind');
  t.equal(
    refusal(() => memory.remove(0xf000, 0xfff)),
    Errno.ENOENT,
    'only whole ranges are removed',
  );
  t.equal(
    refusal(() => memory.remove(0xf800, 0x800)),
    Errno.ENOENT,
  );
  const { generation } = memory;
  memory.remove(0xf000, 0x1000);
  t.not(memory.generation, generation, 'the generation moves');
  t.equal(
    refusal(() => memory.remove(0xf000, 0x1000)),
    Errno.ENOENT,
    'once',
  );
});

t.test('a range that is mapped is the memory itself', async (t) => {
  const { memory, fds } = memoryWith(t, [
    { kind: 'mapped', address: 0x1000, length: 0x2000, offset: 0x1000 },
  ]);
  t.equal(memory.write(0x1ffe, Uint8Array.of(1, 2, 3, 4)), undefined, 'at once');
  const there = new Uint8Array(4);
  t.equal(readSync(fds[0]!.number, there, 0, 4, 0x1000 + 0xffe), 4);
  t.strictSame(there, Uint8Array.of(1, 2, 3, 4));
  t.strictSame(memory.view(0x1ffe, 4, 'read'), Uint8Array.of(1, 2, 3, 4));
  const back = new Uint8Array(4);
  t.equal(memory.read(0x1ffe, back), undefined);
  t.strictSame(back, Uint8Array.of(1, 2, 3, 4));
});

t.test('faults', async (t) => {
  const { memory } = memoryWith(t, [
    { kind: 'mapped', address: 0x1000, length: 0x1000, flags: READ },
    { kind: 'mapped', address: 0x2000, length: 0x1000, flags: WRITE },
    { kind: 'message', address: 0x5000, length: 0x1000, flags: READ },
  ]);
  const bytes = new Uint8Array(16);
  t.throws(() => memory.read(0, bytes), DmaFault, 'below');
  t.throws(() => memory.read(0x3000, bytes), DmaFault, 'in a hole');
  t.throws(() => memory.write(0x1000, bytes), DmaFault, 'read only');
  t.throws(() => memory.view(0x2000, 4, 'read'), DmaFault, 'write only');
  t.throws(() => memory.write(0x5000, bytes), DmaFault, 'read only by message');
  t.throws(() => memory.pin([{ address: 0x2ff8, length: 16 }], 'write'), DmaFault, 'a pin past the end');
  const fault = await Promise.resolve(memory.write(0x2ff8, bytes)).catch((error) => error);
  t.type(fault, DmaFault);
  t.equal(fault.address, 0x3000, 'where it begins');
  t.equal(fault.errno, Errno.EFAULT);
});

t.test('accesses across ranges of every kind', async (t) => {
  const kinds = ['mapped', 'message', 'file', 'mapped', 'mapped', 'file', 'message', 'message'] as const;
  const length = 0x1000;
  const { memory } = memoryWith(
    t,
    kinds.map((kind, i) => ({ kind, address: 0x8000 + i * length, length })),
  );
  const model = new Uint8Array(kinds.length * length);
  await fc.assert(
    fc.asyncProperty(
      fc.nat(model.length - 1),
      fc.integer({ min: 1, max: 3 * length }),
      fc.nat(255),
      async (at, count, value) => {
        const bytes = new Uint8Array(Math.min(count, model.length - at)).map((_, i) => (value + i) & 0xff);
        await memory.write(0x8000 + at, bytes);
        model.set(bytes, at);
        const back = new Uint8Array(model.length);
        await memory.read(0x8000, back);
        if (!sameBytes(back, model)) throw new Error('memory differs');
        const pin = await memory.pin([{ address: 0x8000 + at, length: bytes.length }], 'read');
        const pinned = Buffer.concat(pin.buffers);
        await pin.release();
        if (!sameBytes(pinned, bytes)) throw new Error('pinned bytes differ');
      },
    ),
    { numRuns: 60, seed: 5 },
  );
});

t.test('a pin for writing over mapped and remote ranges arrives with its release', async (t) => {
  const { memory, peer } = memoryWith(t, [
    { kind: 'mapped', address: 0, length: 0x1000 },
    { kind: 'message', address: 0x1000, length: 0x1000 },
  ]);
  const log = marks();
  memory.setWriteLog(log);
  const pin = await memory.pin(
    [
      { address: 0xff0, length: 32 },
      { address: 0x1100, length: 4 },
    ],
    'write',
  );
  t.equal(Buffer.concat(pin.buffers).length, 36);
  for (const buffer of pin.buffers) buffer.fill(0x77);
  t.equal(peer.writes, 0);
  await pin.release();
  t.strictSame(peer.bytes(0x1000, 16), new Uint8Array(16).fill(0x77));
  t.strictSame(peer.bytes(0x1100, 4), new Uint8Array(4).fill(0x77));
  t.strictSame(
    log.list.splice(0),
    [{ address: 0xff0, length: 16 }],
    'what the VMM itself has written is its to know',
  );
});

t.test('an unmap waits for the pins', async (t) => {
  const { memory } = memoryWith(t, [{ kind: 'mapped', address: 0, length: 0x2000 }]);
  const first = await memory.pin([{ address: 0, length: 0x10 }], 'write');
  const second = await memory.pin([{ address: 0x1000, length: 0x10 }], 'read');
  let unmapped = false;
  const done = Promise.resolve(memory.remove(0, 0x2000)).then(() => {
    unmapped = true;
  });
  t.throws(() => memory.read(0, new Uint8Array(1)), DmaFault, 'new accesses find nothing');
  first.buffers[0]!.fill(1);
  await first.release();
  await new Promise(setImmediate);
  t.equal(unmapped, false);
  t.equal(second.buffers[0]!.length, 0x10, 'the buffers are still there');
  await second.release();
  await done;
  t.equal(second.buffers[0]!.length, 0, 'and then they are not');
});

t.test('an unmap waits for a message under way', async (t) => {
  const { memory, peer } = memoryWith(t, [{ kind: 'message', address: 0, length: 0x1000 }]);
  let answer = (): void => {};
  peer.before = () => new Promise<void>((resolve) => (answer = resolve));
  const reading = memory.read(0, new Uint8Array(8));
  let unmapped = false;
  const done = Promise.resolve(memory.remove(0, 0x1000)).then(() => {
    unmapped = true;
  });
  await new Promise(setImmediate);
  t.equal(unmapped, false);
  answer();
  await reading;
  await done;
});

t.test('the write log', async (t) => {
  const { memory, peer } = memoryWith(t, [
    { kind: 'mapped', address: 0, length: 0x4000 },
    { kind: 'message', address: 0x4000, length: 0x1000 },
  ]);
  const log = marks();
  memory.write(0, Uint8Array.of(1));
  const before = await memory.pin([{ address: 0x1000, length: 8 }], 'write');
  const reading = await memory.pin([{ address: 0x2000, length: 8 }], 'read');
  memory.setWriteLog(log);
  t.strictSame(
    log.list.splice(0),
    [{ address: 0x1000, length: 8 }],
    'what is held for writing counts at once',
  );
  memory.markPinned();
  t.strictSame(log.list.splice(0), [{ address: 0x1000, length: 8 }], 'and after each report');
  await before.release();
  t.strictSame(log.list.splice(0), [{ address: 0x1000, length: 8 }], 'and when it is released');
  await reading.release();
  memory.write(0x3000, Uint8Array.of(1, 2));
  await memory.write(0x3fff, Uint8Array.of(1, 2));
  t.strictSame(log.list.splice(0), [
    { address: 0x3000, length: 2 },
    { address: 0x3fff, length: 1 },
  ]);
  peer.before = () => Promise.reject(new Error('lost'));
  await t.rejects(Promise.resolve(memory.write(0x3fff, Uint8Array.of(1, 2))), /lost/);
  t.strictSame(
    log.list.splice(0),
    [{ address: 0x3fff, length: 1 }],
    'of a failed write some may have arrived',
  );
  memory.setWriteLog(undefined);
  memory.write(0x3000, Uint8Array.of(1));
  t.strictSame(log.list, [], 'switched off');
});

t.test('writes by messages, of mapped memory too', async (t) => {
  const { memory, fds } = memoryWith(t, [
    { kind: 'mapped', address: 0, length: 0x1000 },
    { kind: 'message', address: 0x1000, length: 0x1000 },
  ]);
  const log = marks();
  memory.setWriteLog(log);
  const vmm = new MemoryPeer();
  const { generation } = memory;
  memory.setMessageWriter(vmm);
  t.not(memory.generation, generation, 'views for writing are over');
  t.equal(memory.view(0, 4, 'write'), undefined);
  t.equal(memory.view(0, 4, 'read')?.length, 4);
  await memory.write(0xffe, Uint8Array.of(1, 2, 3, 4));
  t.strictSame(vmm.bytes(0xffe, 4), Uint8Array.of(1, 2, 3, 4));
  const pin = await memory.pin([{ address: 0x10, length: 2 }], 'write');
  pin.buffers[0]!.fill(7);
  await pin.release();
  t.strictSame(vmm.bytes(0x10, 2), Uint8Array.of(7, 7));
  const there = new Uint8Array(2);
  readSync(fds[0]!.number, there, 0, 2, 0x10);
  t.strictSame(there, new Uint8Array(2), 'none of it directly');
  t.strictSame(log.list, [], 'and no log needed');
  memory.setMessageWriter(undefined);
  t.equal(memory.write(0x10, Uint8Array.of(9)), undefined, 'directly again');
  t.strictSame(log.list, [{ address: 0x10, length: 1 }]);
});

t.test('the border between two windows of a sparse range of more than a gigabyte', async (t) => {
  const length = WINDOW_SIZE + 0x10000;
  const { memory, fds } = memoryWith(t, [{ kind: 'mapped', address: 0x1000, length }]);
  const border = 0x1000 + WINDOW_SIZE;
  const bytes = Uint8Array.from({ length: 64 }, (_, i) => i + 1);
  t.equal(memory.view(border - 32, 64, 'write'), undefined, 'no one view spans it');
  t.equal(memory.view(border - 32, 32, 'write')?.length, 32, 'up to it');
  t.equal(memory.view(border, 32, 'write')?.length, 32, 'and from it on');
  await memory.write(border - 32, bytes);
  const there = new Uint8Array(64);
  readSync(fds[0]!.number, there, 0, 64, WINDOW_SIZE - 32);
  t.strictSame(there, bytes);
  const back = new Uint8Array(64);
  await memory.read(border - 32, back);
  t.strictSame(back, bytes);
  const pin = await memory.pin([{ address: border - 32, length: 64 }], 'read');
  t.strictSame(
    pin.buffers.map((buffer) => buffer.length),
    [32, 32],
  );
  t.strictSame(new Uint8Array(Buffer.concat(pin.buffers)), bytes);
  await pin.release();
});

t.test('fds that cannot be what the request says', async (t) => {
  const peer = new MemoryPeer();
  const open = (fd: Fd, request: { flags: number; offset?: number; size: number }): number => {
    try {
      return refusal(() => openBacking({ offset: 0, address: 0, ...request }, fd, peer).unmap());
    } finally {
      fd.close();
    }
  };
  t.equal(open(memfd(0x1000), { flags: 3, size: 0x1001 }), Errno.EINVAL, 'a file that is too short');
  t.equal(open(memfd(0x1000), { flags: 3, size: 0x1000, offset: 0x800 }), Errno.EINVAL, 'with its offset');
  t.equal(
    open(memfd(0x3000), { flags: 3, size: 0x1000, offset: 0x800 }),
    Errno.EINVAL,
    'an offset within a page',
  );
  t.not(open(new Fd(native.eventfdCreate(0)), { flags: 3, size: 0x1000 }), 0, 'an eventfd');
  const readOnly = memfd(0x1000);
  native.addSeals(readOnly.number, 0x10 | 0x08);
  t.not(open(readOnly, { flags: 3, size: 0x1000 }), 0, 'a file sealed against writing, mapped for writing');
});

t.test('file I/O past the end of the file', async (t) => {
  const fd = memfd(0x1000);
  const memory = new DmaTable();
  const request = { flags: 3 | FILE_IO, offset: 0, address: 0, size: 0x2000 };
  memory.add({
    address: 0,
    length: 0x2000,
    readable: true,
    writable: true,
    backing: openBacking(request, fd, new MemoryPeer()),
  });
  await t.rejects(Promise.resolve(memory.read(0xff0, new Uint8Array(32))), /ended/);
  await memory.clear();
  fd.close();
});
