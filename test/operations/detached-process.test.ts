// SPDX-License-Identifier: Apache-2.0
/** Processes that cannot be started: whatever the reason, it is said by a sentence, and nothing is left. */

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { DetachedProcess } from '../../src/operations/detached-process.js';
import { Successor } from '../../src/operations/upgrade/successor.js';
import { resources, socketFolder, until } from '../support/served.js';

t.test('what cannot be started', async (t) => {
  const folder = socketFolder(t);
  const text = join(folder, 'text');
  writeFileSync(text, 'no program\n');
  const programs = { none: '', missing: '/no/such/program', folder, 'under a file': join(text, 'x'), text };
  for (const [name, program] of Object.entries(programs)) {
    const process = new DetachedProcess([program], join(folder, 'log'));
    await until(() => process.ended !== undefined);
    t.match(process.ended, /^cannot be started: .*; name a program that this user may execute$/, name);
    await process.kill();
  }
});

t.test('how one that was started ends', async (t) => {
  const log = join(socketFolder(t), 'log');
  const process = new DetachedProcess(['sh', '-c', 'echo no; exit 3'], log);
  await until(() => process.ended !== undefined);
  t.equal(process.ended, 'ended with exit code 3: no');
  t.equal(readFileSync(log, 'utf8'), 'no\n');
});

/** Temporary files are made there, until the test ends. */
function useTmpdir(t: Test, path: string): void {
  const { TMPDIR: before } = process.env;
  process.env.TMPDIR = path;
  t.teardown(() => {
    if (before === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = before;
  });
}

t.test('a log that cannot be opened: nothing is started, and no directory is left', async (t) => {
  const folder = socketFolder(t);
  const tmp = join(folder, 'tmp');
  mkdirSync(tmp);
  useTmpdir(t, tmp);
  const before = resources();
  for (const log of ['/no/such/folder/log', folder])
    t.throws(() => new Successor(['true'], log), {
      code: 'DEVSTATE_E_OUTPUT',
      message: /^cannot append to .*; nothing was started$/,
    });
  t.same(readdirSync(tmp), []);
  t.same(resources(), before);
});

t.test('no room for its sockets', async (t) => {
  useTmpdir(t, '/no/such/folder');
  t.throws(() => new Successor(['true'], undefined), { code: 'DEVSTATE_E_OUTPUT', message: /set TMPDIR/ });
});
