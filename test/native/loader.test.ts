// SPDX-License-Identifier: Apache-2.0
/** Where the addon is looked for, and what is said when it is not there. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { buildAddon, builtAddons } from '../../src/native/compile.js';
import { check, checkObject, Errno, systemError } from '../../src/native/index.js';
import { addonCandidates, loadAddon, loadPackageAddon } from '../../src/native/loader.js';

t.test('the places, in order', async (t) => {
  t.same(addonCandidates('/p', '/x/devstate.node'), ['/x/devstate.node']);
  t.same(addonCandidates('/p', ''), [
    '/p/native/build/Release/devstate.node',
    '/p/native/build/Debug/devstate.node',
    `/p/native/prebuilds/linux-${process.arch}/devstate.node`,
  ]);
  t.type(loadPackageAddon().crc32c, 'function');
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
