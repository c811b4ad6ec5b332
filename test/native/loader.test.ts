// SPDX-License-Identifier: Apache-2.0
/** Where the addon is looked for, and what is said when it is not there. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { buildAddon, builtAddons } from '../../src/native/compile.js';
import { check, checkObject, Errno, systemError } from '../../src/native/index.js';
import { addonCandidates, loadAddon, loadPackageAddon } from '../../src/native/loader.js';
import { platformName } from '../../src/native/platform.js';

t.test('the places, in order', async (t) => {
  t.same(addonCandidates('/p', '/x/devstate.node'), ['/x/devstate.node']);
  t.same(addonCandidates('/p', ''), [
    '/p/native/build/Release/devstate.node',
    '/p/native/build/Debug/devstate.node',
    `/p/native/prebuilds/${platformName()}/devstate.node`,
  ]);
  t.type(loadPackageAddon().crc32c, 'function');
});

t.test('an addon for another C library is not taken', async (t) => {
  const base = `linux-${process.arch}`;
  // Lines of a process on Debian and of one on Alpine.
  const glibc = '7f25-7f26 r--p 00000000 00:1e 7 /lib/x86_64-linux-gnu/libc.so.6\n';
  const musl = '7f6a-7f6b r--p 00000000 00:1e 7                /lib/ld-musl-x86_64.so.1\n';
  t.equal(platformName(glibc), base);
  t.equal(platformName(`${musl}7f6c-7f6d r--p 00000000 00:1e 9 /usr/bin/node\n`), `${base}-musl`);
  const debians = '7f6a-7f6b r--p 00000000 00:1e 7                /usr/lib/x86_64-linux-musl/libc.so\n';
  t.equal(platformName(debians), `${base}-musl`);
  t.equal(platformName('7f25-7f26 r--p 00000000 00:1e 7 /home/ld-musl-notes/file\n'), base);
  const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } };
  t.equal(
    platformName(),
    header.glibcVersionRuntime === undefined ? `${base}-musl` : base,
    'of this process',
  );
});

t.test('an addon that is missing or does not load', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'devstate-loader-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'devstate.node');
  t.throws(() => loadAddon([path]), { code: 'DEVSTATE_E_ADDON', message: /tools\/prepare\.mjs/ });
  writeFileSync(path, 'not an addon');
  t.throws(() => loadAddon([path]), { code: 'DEVSTATE_E_ADDON', message: /does not load/ });
});

t.test('a package without the sources of its addon', async (t) => {
  const root = mkdtempSync(join(tmpdir(), 'devstate-loader-'));
  t.teardown(() => rmSync(root, { recursive: true }));
  t.same(builtAddons(root), []);
  t.throws(() => buildAddon(root), {
    code: 'DEVSTATE_E_ADDON',
    message: /there are no sources in .*; install/,
  });
});

t.test('errno values become errors', async (t) => {
  t.equal(check(5, 'count'), 5);
  t.throws(() => check(-Errno.ENOENT, 'open x'), {
    code: 'DEVSTATE_E_SYSTEM',
    errno: Errno.ENOENT,
    message: 'cannot open x: there is no such file or folder; make it first (ENOENT)',
  });
  t.throws(() => checkObject<object>(-Errno.EPERM, 'map'), {
    code: 'DEVSTATE_E_SYSTEM',
    message: 'cannot map: not permitted; run as a user who may (EPERM)',
  });
  t.equal(systemError('do', Errno.EAGAIN).message, 'cannot do: EAGAIN');
});
