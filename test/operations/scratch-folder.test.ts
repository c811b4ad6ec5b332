// SPDX-License-Identifier: Apache-2.0
/** Folders that killed processes have left are removed by the next one, and no others. */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { makeScratchFolder } from '../../src/operations/scratch-folder.js';
import { socketFolder } from '../support/served.js';

t.test('folders of processes that were killed', (t) => {
  const parent = socketFolder(t);
  const before = process.env.TMPDIR;
  process.env.TMPDIR = parent;
  t.teardown(() => {
    if (before === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = before;
  });
  const ended = spawnSync('true').pid;
  const LONG_AGO = new Date(Date.now() - 3_600_000);
  const folder = (name: string, time: Date): string => {
    const path = join(parent, name);
    mkdirSync(path);
    writeFileSync(join(path, 'socket'), '');
    utimesSync(path, time, time);
    return path;
  };
  const left = folder(`devstate-upgrade-${ended}-abcdef`, LONG_AGO);
  const kept = [
    folder(`devstate-upgrade-${ended}-ghijkl`, new Date()),
    folder(`devstate-upgrade-${process.pid}-abcdef`, LONG_AGO),
    folder(`devstate-other-${ended}-abcdef`, LONG_AGO),
    folder('devstate-upgrade-abcdef', LONG_AGO),
  ];
  const made = makeScratchFolder('upgrade');
  t.equal(statSync(made).mode & 0o777, 0o700);
  t.equal(existsSync(left), false, 'its process has ended, long ago');
  for (const path of kept) t.ok(existsSync(path), path);
  t.end();
});
