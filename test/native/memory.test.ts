// SPDX-License-Identifier: Apache-2.0
/** Memory files, mappings and what happens to them when a peer truncates the file. */

import { closeSync, openSync, read, readFileSync, readSync } from 'node:fs';
import { promisify } from 'node:util';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t from 'tap';
import { check, checkObject, Errno, type Mapping, native, Protection, Seal } from '../../src/native/index.js';
import { settleCloses } from '../support/closes.js';

const PAGE = 4096;

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

function memoryFile(length: number, name = 'test'): number {
  const fd = check(native.memfdCreate(name), 'create');
  check(native.truncate(fd, length), 'size');
  return fd;
}

function map(fd: number, length: number, offset = 0, protection: number = Protection.readWrite): Mapping {
  return checkObject(native.map(fd, offset, length, protection), 'map');
}

function windowOf(mapping: Mapping, offset = 0, length = mapping.length): Uint8Array {
  return new Uint8Array(checkObject(mapping.window(offset, length), 'window'));
}

/** Ranges of this process that map the memory file `name`. */
function mappedRanges(name: string): number {
  settleCloses();
  const lines = readFileSync('/proc/self/maps', 'utf8').split('\n');
  return lines.filter((line) => line.includes(`/memfd:${name} `)).length;
}

t.test('memory files: size, type and seals', async (t) => {
  const fd = memoryFile(3 * PAGE);
  const out = new Float64Array(4);
  t.equal(native.stat(fd, out), 0);
  t.equal(out[0], 3 * PAGE);
  t.equal(out[1]! & 0o170000, 0o100000);
  t.equal(native.getSeals(fd), 0);
  t.equal(native.addSeals(fd, Seal.shrink), 0);
  t.equal(native.getSeals(fd), Seal.shrink);
  t.equal(native.truncate(fd, PAGE), -Errno.EPERM);
  t.equal(native.close(fd), 0);
  t.equal(native.close(fd), -Errno.EBADF);
  t.equal(native.memfdCreate('n'.repeat(250)), -Errno.EINVAL);
});

t.test('windows share the memory', async (t) => {
  const fd = memoryFile(4 * PAGE);
  const mapping = map(fd, 3 * PAGE, PAGE);
  native.close(fd);
  const [all, same, part] = [windowOf(mapping), windowOf(mapping), windowOf(mapping, 10, 20)];
  part[5] = 0x77;
  t.equal(all[15], 0x77);
  t.equal(same[15], 0x77);
  for (const [offset, length] of [
    [0, 0],
    [0, 3 * PAGE + 1],
    [3 * PAGE, 1],
    [1, 3 * PAGE],
    [0, 2 ** 31],
  ] as const) {
    t.equal(mapping.window(offset, length), -Errno.EINVAL, `window(${offset}, ${length})`);
  }
  mapping.unmap();
});

t.test('map refuses what the kernel refuses', async (t) => {
  const fd = memoryFile(PAGE);
  t.equal(native.map(fd, 0, 0, 3), -Errno.EINVAL);
  t.equal(native.map(fd, 1, PAGE, 3), -Errno.EINVAL);
  t.throws(() => native.map(-1, 0, PAGE, 3), TypeError);
  t.equal(native.map(1023, 0, PAGE, 3), -Errno.EBADF);
  t.throws(() => native.map(fd, -1, PAGE, 3), TypeError);
  t.throws(() => native.map(fd, 0, 2 ** 53, 3), TypeError);
  t.throws(() => native.map(fd, 0.5, PAGE, 3), TypeError);
  native.close(fd);
});

t.test('a mapping may be far larger than memory', async (t) => {
  const fd = memoryFile(2 ** 41);
  const mapping = map(fd, 2 ** 41);
  const last = windowOf(mapping, 2 ** 41 - PAGE, PAGE);
  last[0] = 5;
  t.equal(last[0], 5);
  mapping.unmap();
  native.close(fd);
});

t.test('unmap detaches every window, and may be called again', async (t) => {
  const fd = memoryFile(PAGE, 'detach');
  const mapping = map(fd, PAGE);
  const windows = [windowOf(mapping), windowOf(mapping), windowOf(mapping, 1, 2)];
  t.equal(mappedRanges('detach'), 1);
  t.ok(mapping.mapped);
  t.equal(mapping.unmap(), 0);
  t.equal(mapping.unmap(), 0);
  t.notOk(mapping.mapped);
  t.equal(mappedRanges('detach'), 0);
  for (const window of windows) {
    t.equal(window.length, 0);
    t.equal(window[0], undefined);
  }
  t.equal(mapping.window(0, 1), -Errno.EBADF);
  native.close(fd);
});

t.test('an address that is mapped again gives fresh windows', async (t) => {
  const fds = [memoryFile(PAGE, 'first'), memoryFile(PAGE, 'second')];
  for (let i = 0; i < 5000; i++) {
    const mapping = map(fds[i % 2]!, PAGE);
    const window = windowOf(mapping);
    window[0] = i & 0xff;
    if (window[0] !== (i & 0xff)) t.fail('the window shows other memory');
    mapping.unmap();
    if (i % 1000 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  t.equal(mappedRanges('first') + mappedRanges('second'), 0);
  fds.forEach((fd) => void native.close(fd));
});

/** Collects until `done`, which depends on finalizers that the engine runs between turns of the loop. */
async function collectUntil(done: () => boolean): Promise<boolean> {
  for (let i = 0; i < 50 && !done(); i++) {
    collectGarbage();
    await new Promise((resolve) => setImmediate(resolve));
  }
  return done();
}

t.test('a forgotten mapping is unmapped, but not while a window of it lives', async (t) => {
  const fd = memoryFile(PAGE, 'forgotten');
  let kept: Uint8Array | undefined = (() => {
    for (let i = 0; i < 100; i++) windowOf(map(fd, PAGE));
    return windowOf(map(fd, PAGE));
  })();
  t.ok(await collectUntil(() => mappedRanges('forgotten') === 1), 'all but one are gone');
  kept[7] = 9;
  t.equal(kept[7], 9);
  kept = undefined;
  t.ok(await collectUntil(() => mappedRanges('forgotten') === 0), 'the last is gone');
  native.close(fd);
});

t.test('a pinned mapping stays mapped across unmap', async (t) => {
  const fd = memoryFile(PAGE, 'pinned');
  const zero = openSync('/dev/zero', 'r');
  const mapping = map(fd, PAGE);
  const window = windowOf(mapping);
  t.equal(mapping.pin(), 0);
  t.equal(mapping.pin(), 0);
  const reading = promisify(read)(zero, window, 0, PAGE, null);
  mapping.unmap();
  t.equal(window.length, 0, 'windows are detached at once');
  t.equal(mappedRanges('pinned'), 1);
  await reading;
  t.equal(mapping.unpin(), 0);
  t.ok(mapping.mapped);
  t.equal(mapping.unpin(), 0);
  t.notOk(mapping.mapped);
  t.equal(mappedRanges('pinned'), 0);
  t.equal(mapping.unpin(), -Errno.EINVAL);
  t.equal(mapping.pin(), -Errno.EBADF);
  closeSync(zero);
  native.close(fd);
});

t.test('a file truncated under its mapping reads as zeros and is reported', async (t) => {
  const fd = memoryFile(8 * PAGE);
  const other = map(fd, PAGE);
  const mapping = map(fd, 8 * PAGE);
  const bytes = windowOf(mapping).fill(0x55);
  t.equal(native.truncate(fd, 2 * PAGE), 0);
  t.notOk(mapping.faulted);

  const zero = openSync('/dev/zero', 'r');
  t.throws(
    () => readSync(zero, bytes, 5 * PAGE, PAGE, 0),
    { code: 'EFAULT' },
    'the kernel refuses to write there',
  );
  closeSync(zero);
  t.notOk(mapping.faulted);

  t.equal(bytes[6 * PAGE + 1], 0);
  t.ok(mapping.faulted);
  t.equal(bytes[3 * PAGE], 0, 'before the first fault');
  bytes[3 * PAGE] = 4;
  t.equal(bytes[3 * PAGE], 4, 'writes go to private memory');
  t.equal(bytes[2 * PAGE - 1], 0x55, 'what is left of the file is still shared');
  t.not(native.crc32c(bytes, 0, bytes.length, 0), 0, 'the addon reads it too');
  t.notOk(other.faulted, 'other mappings are not concerned');
  mapping.unmap();
  t.ok(mapping.faulted, 'remembered after unmap');
  other.unmap();
  native.close(fd);
});

t.test('a read-only mapping survives a truncation too', async (t) => {
  const fd = memoryFile(2 * PAGE);
  const mapping = map(fd, 2 * PAGE, 0, Protection.read);
  const bytes = windowOf(mapping);
  native.truncate(fd, 0);
  t.equal(bytes[PAGE], 0);
  t.equal(bytes[0], 0);
  t.ok(mapping.faulted);
  mapping.unmap();
  native.close(fd);
});

t.test('methods refuse what is not a mapping', async (t) => {
  const fd = memoryFile(PAGE);
  const mapping = map(fd, PAGE);
  t.throws(() => mapping.unmap.call({} as Mapping), TypeError);
  const Constructor = mapping.constructor as new () => Mapping;
  t.throws(() => new Constructor().unmap(), TypeError);
  mapping.unmap();
  native.close(fd);
});
