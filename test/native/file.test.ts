// SPDX-License-Identifier: Apache-2.0
/** Locks, holes, reads that do not wait, event counters, and descriptors. */

import { closeSync, mkdtempSync, openSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { AllocateMode, check, Errno, LockType, native, PosixPoll } from '../../src/native/index.js';

const folder = mkdtempSync(join(tmpdir(), 'devstate-file-'));
t.teardown(() => rmSync(folder, { recursive: true }));

t.test('a lock belongs to the open file', async (t) => {
  const path = join(folder, 'locked');
  writeFileSync(path, 'x');
  const [first, second] = [openSync(path, 'r+'), openSync(path, 'r+')];
  t.equal(native.testLock(second, LockType.write, 0, 0), LockType.unlocked);
  t.equal(native.setLock(first, LockType.write, 0, 0), 0);
  t.equal(native.testLock(second, LockType.write, 0, 0), LockType.write);
  t.equal(native.setLock(second, LockType.write, 0, 0), -Errno.EAGAIN);
  const copy = check(native.duplicate(first), 'duplicate');
  closeSync(first);
  t.equal(native.setLock(second, LockType.write, 0, 0), -Errno.EAGAIN, 'a duplicate holds it on');
  t.equal(native.setLock(copy, LockType.unlocked, 0, 0), 0);
  t.equal(native.setLock(second, LockType.write, 0, 0), 0);
  native.close(copy);
  closeSync(second);
});

t.test('holes and zeroes', async (t) => {
  const fd = check(native.memfdCreate('holes'), 'create');
  check(native.truncate(fd, 1 << 20), 'size');
  const ones = new Uint8Array(1 << 20).fill(1);
  t.equal(native.allocate(fd, AllocateMode.punchHole, 4096, 8192), 0);
  t.equal(native.allocate(fd, AllocateMode.punchHole, 4096, 0), -Errno.EINVAL);
  native.close(fd);

  const path = join(folder, 'image');
  writeFileSync(path, ones);
  const file = openSync(path, 'r+');
  const blocks = statSync(path).blocks;
  t.equal(native.allocate(file, AllocateMode.punchHole, 0, 1 << 19), 0);
  t.ok(statSync(path).blocks < blocks, 'space is given back');
  const read = new Uint8Array(2);
  t.equal(native.readNow(file, read, (1 << 19) - 1), 2);
  t.same([...read], [0, 1]);
  closeSync(file);
});

t.test('readNow scatters over parts', async (t) => {
  const path = join(folder, 'parts');
  writeFileSync(path, 'abcdefghij');
  const fd = openSync(path, 'r');
  const parts = [new Uint8Array(3), new Uint8Array(0), new Uint8Array(4)];
  t.equal(native.readNow(fd, parts, 1), 7);
  t.equal(Buffer.concat(parts).toString(), 'bcdefgh');
  t.equal(native.readNow(fd, parts, 10), 0, 'at the end');
  t.equal(native.readNow(fd, Array(1025).fill(parts[0]), 0), -Errno.EINVAL);
  t.throws(() => native.readNow(fd, [new Uint16Array(1) as unknown as Uint8Array], 0), TypeError);
  t.throws(() => native.readNow(fd, parts, -1), TypeError);
  closeSync(fd);
});

t.test('event counters', async (t) => {
  const fd = check(native.eventfdCreate(0), 'create');
  t.equal(native.eventfdRead(fd), -Errno.EAGAIN);
  t.equal(native.eventfdSignal(fd), 0);
  t.equal(native.eventfdSignal(fd), 0);
  t.equal(native.poll(fd, PosixPoll.in, 0), PosixPoll.in);
  t.equal(native.eventfdRead(fd), 2);
  t.equal(native.poll(fd, PosixPoll.in, 0), 0);
  native.close(fd);
  t.equal(native.eventfdSignal(fd), -Errno.EBADF);
  t.equal(native.eventfdRead(fd), -Errno.EBADF);
});

t.test('a full counter is not waited for', async (t) => {
  const fd = check(native.eventfdCreate(0xffffffff), 'create');
  const largest = 0xffff_ffff_ffff_fffen;
  writeSync(fd, new Uint8Array(new BigUint64Array([largest - 0xffff_ffffn]).buffer));
  t.equal(native.eventfdSignal(fd), -Errno.EAGAIN);
  t.equal(native.eventfdRead(fd), Number.MAX_SAFE_INTEGER, 'told as the largest safe integer');
  t.equal(native.eventfdSignal(fd), 0);
  native.close(fd);
});

t.test('fds whose memory a getter of the parts takes away are not sent', async (t) => {
  const pair = new Int32Array(2);
  t.equal(native.socketPair(pair), 0);
  const fds = new Int32Array([pair[0]!]);
  const parts: Uint8Array[] = [new Uint8Array(4), new Uint8Array(4)];
  Object.defineProperty(parts, 1, {
    get: () => {
      structuredClone(fds.buffer, { transfer: [fds.buffer] });
      return new Uint8Array(4);
    },
  });
  t.equal(native.sendMessage(pair[0]!, parts, 0, 8, fds, 1), -Errno.EINVAL);
  for (const fd of pair) native.close(fd);
});
