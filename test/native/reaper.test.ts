// SPDX-License-Identifier: Apache-2.0
/** Closes and unmaps on other threads: neither the event loop nor the end of the process waits for them. */

import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { check, checkObject, Errno, native, Protection } from '../../src/native/index.js';
import { settleCloses } from '../support/closes.js';
import { lingering } from '../support/lingering.js';

const PAGE = 4096;
const SELF = fileURLToPath(import.meta.url);

if (process.argv[2] === 'exit') {
  const { numbers } = await lingering(60, 2);
  for (const number of numbers) native.closeLater(number, 1);
  await new Promise((resolve) => setTimeout(resolve, 100));
  process.exit(native.closing() === 2 ? 0 : 1);
}

const until = async (holds: () => boolean): Promise<void> => {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 2));
};

t.test('a close that blocks delays neither the caller nor those of other groups', async (t) => {
  const { numbers, release } = await lingering(60, 6);
  const before = performance.now();
  for (const number of numbers) native.closeLater(number, 7);
  t.ok(performance.now() - before < 1000, 'the caller continues');
  t.equal(native.closing(7), 6);
  const others = Array.from({ length: 20 }, () => check(native.eventfdCreate(0), 'eventfd'));
  for (const fd of others) native.closeLater(fd, 8);
  await until(() => native.closing(8) === 0);
  t.equal(native.closing(7), 6, 'those that block still do');
  for (const fd of others) t.equal(native.stat(fd, new Float64Array(4)), -Errno.EBADF);
  await release();
  await until(() => native.closing() === 0);
  t.equal(native.closing(7), 0);
});

t.test('the process ends while closes block', async (t) => {
  const { status } = spawnSync(process.execPath, [SELF, 'exit'], { timeout: 30_000, stdio: 'inherit' });
  t.equal(status, 0);
});

t.test('copy and compare on another thread, also of memory that is unmapped meanwhile', async (t) => {
  const length = 8 << 20;
  const fd = check(native.memfdCreate('async'), 'memfd');
  check(native.truncate(fd, length), 'size');
  const mapping = checkObject(native.map(fd, 0, length, Protection.readWrite), 'map');
  native.close(fd);
  const window = new Uint8Array(checkObject(mapping.window(PAGE, length - PAGE), 'window'));
  const plain = new Uint8Array(length - PAGE).fill(0x5a);
  t.equal(await native.equalLater(window, plain), 0);
  const copying = native.copyLater(window, plain);
  const comparing = native.equalLater(window, window);
  mapping.unmap();
  t.equal(window.length, 0, 'detached');
  t.equal(await copying, length - PAGE);
  t.equal(await comparing, 1);
  settleCloses();
  t.equal(await native.equalLater(plain, plain.slice()), 1);
  t.equal(await native.equalLater(plain, plain.subarray(1)), 0);
  t.equal(await native.copyLater(new Uint8Array(0), plain), 0);
  t.throws(() => native.copyLater(plain, 5 as never), TypeError);
});

t.test('allocation on another thread', async (t) => {
  const fd = check(native.memfdCreate('allocate'), 'memfd');
  t.equal(await native.allocateLater(fd, 1, 0, PAGE), 0);
  t.equal(await native.allocateLater(fd, 1, 0, 0), -Errno.EINVAL);
  native.close(fd);
  t.equal(await native.allocateLater(fd, 1, 0, PAGE), -Errno.EBADF);
});
