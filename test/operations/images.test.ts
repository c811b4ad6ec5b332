// SPDX-License-Identifier: Apache-2.0
/** Whether two servers work on one image: by the hole that the source's leaves in its lock, whatever the paths are. */

import { copyFileSync, linkSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { ImageFile } from '../../src/devices/nvme/image-file.js';
import { proveImages } from '../../src/operations/identity/index.js';
import { Errno, MAX_IMAGE_BYTE, MIN_IMAGE_BYTE } from '../../src/wire/index.js';
import { outcome, serveScratch, socketFolder } from '../support/served.js';
import { type NvmeServer, serveNvme } from './nvme-servers.js';

const BYTE = MIN_IMAGE_BYTE + 4711;

/** A source that has its image, and a function that makes destinations. */
function bed(t: Test) {
  const folder = socketFolder(t);
  const path = join(folder, 'disk.img');
  const source = serveNvme(t, { image: path });
  const wait = (image: string): NvmeServer => serveNvme(t, { image, lock: false });
  return { folder, path, source, wait };
}

async function prove(source: Pick<NvmeServer, 'manager'>, destination: Pick<NvmeServer, 'manager'>) {
  const named = async (path: string, server: Pick<NvmeServer, 'manager'>) => {
    return { path, device: await server.manager() };
  };
  return proveImages('disk0', await named('a.mig', source), await named('b.mig', destination));
}

t.test('the feature', async (t) => {
  const { path, source, wait } = bed(t);
  const [here, there] = [await source.manager(), await wait(path).manager()];
  t.same(await here.images(BYTE), [{ path, locked: true, free: true }], "one's own lock is none of others");
  t.same(await there.images(BYTE), [{ path, locked: false, free: false }]);
  await here.leaveOut(BYTE);
  t.match(await there.images(BYTE), [{ free: true }]);
  t.match(await there.images(BYTE + 1), [{ free: false }]);
  t.match(await there.images(BYTE - 1), [{ free: false }]);
  await here.leaveOut(BYTE + 1);
  t.match(await there.images(BYTE), [{ free: false }], 'one byte at a time');
  await here.leaveOut(0);
  t.match(await there.images(BYTE + 1), [{ free: false }]);
  t.equal(await outcome(there.leaveOut(BYTE)), Errno.EBUSY, 'only who has the lock');
  for (const byte of [1, MIN_IMAGE_BYTE - 1, MAX_IMAGE_BYTE + 1]) {
    t.equal(await outcome(here.images(byte)), Errno.EINVAL, `byte ${byte}`);
    t.equal(await outcome(here.leaveOut(byte)), Errno.EINVAL, `byte ${byte}`);
  }
  t.throws(() => ImageFile.open({ path, lock: true }), { code: 'DEVSTATE_E_IMAGE_LOCKED' });
});

t.test('another image under the same path', async (t) => {
  const { path, source, wait } = bed(t);
  await source.manager();
  renameSync(path, `${path}.old`);
  copyFileSync(`${path}.old`, path);
  t.match(await prove(source, wait(path)), [
    /works on another image \(.*disk.img, which is another file there/,
  ]);
});

t.test('one image, by whatever name', async (t) => {
  const { folder, path, source, wait } = bed(t);
  const other = join(folder, 'other-name');
  linkSync(path, other);
  for (const name of [path, other]) t.same(await prove(source, wait(name)), []);
  const asked = await wait(path).manager();
  t.match(await asked.images(BYTE), [{ free: false }], 'all of it is locked again');
});

t.test('another image', async (t) => {
  const { folder, path, source, wait } = bed(t);
  const copy = join(folder, 'copy.img');
  copyFileSync(path, copy);
  const free = await prove(source, wait(copy));
  t.match(free, [/^device disk0: the destination works on another image \(.*copy.img\) than the source/]);
  t.match(free, [/--image-unchecked disk0$/]);
  const user = ImageFile.open({ path: copy, lock: true });
  t.teardown(() => user.close());
  const taken = await prove(source, wait(copy));
  t.match(taken, [/another image \(.*copy.img\) than the source .*which somebody else has locked/]);
});

t.test('what cannot be proven', async (t) => {
  const { path, source, wait } = bed(t);
  const silent = serveScratch(t);
  t.match(await prove(source, silent), [/the server behind b.mig does not say which image it works on/]);
  t.match(await prove(silent, source), [/the server behind a.mig does not say which image it works on/]);
  t.same(await prove(silent, serveScratch(t)), [], 'devices without images');
  t.match(await prove(wait(path), wait(path)), [/its source has not locked its image/]);
});
