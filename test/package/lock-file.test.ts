// SPDX-License-Identifier: Apache-2.0
/** `package-lock.json` is what `npm ci` takes: in step with `package.json`, for every platform, from any registry. */

import { spawnSync } from 'node:child_process';
import { cpSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { PACKAGE_ROOT } from '../../src/package-root.js';

interface LockEntry {
  readonly version?: string;
  readonly resolved?: string;
  readonly integrity?: string;
  readonly inBundle?: boolean;
  readonly optionalDependencies?: Record<string, string>;
}

const lock = JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package-lock.json'), 'utf8')) as {
  version: string;
  packages: Record<string, LockEntry>;
};
const manifest = JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as {
  version: string;
};

t.test('npm ci takes the lock file, without asking a registry', async (t) => {
  const folder = t.testdir();
  for (const name of ['package.json', 'package-lock.json'])
    cpSync(join(PACKAGE_ROOT, name), join(folder, name));
  const args = ['ci', '--dry-run', '--ignore-scripts', '--offline', '--no-audit', '--no-fund'];
  const { status, stdout, stderr } = spawnSync('npm', [...args, '--cache', join(folder, 'cache')], {
    cwd: folder,
    encoding: 'utf8',
  });
  t.equal(status, 0, stdout + stderr);
});

t.test('the lock file lists the optional packages of every platform', async (t) => {
  const missing = Object.entries(lock.packages).flatMap(([path, { optionalDependencies = {} }]) =>
    Object.keys(optionalDependencies).filter((name) =>
      [`${path}/node_modules/${name}`, `node_modules/${name}`].every((place) => !(place in lock.packages)),
    ),
  );
  t.same(missing, []);
});

t.test('the lock file names no registry, and pins each package by its checksum', async (t) => {
  t.equal(lock.version, manifest.version, 'the same version as in package.json');
  const packages = Object.entries(lock.packages).filter(([path]) => path !== '');
  t.same(
    packages.filter(([, { resolved, inBundle }]) => resolved !== undefined && inBundle !== true),
    [],
  );
  t.same(
    packages.filter(([, { integrity, inBundle }]) => !integrity?.startsWith('sha512-') && inBundle !== true),
    [],
  );
});
