// SPDX-License-Identifier: Apache-2.0
/** What may be written to, and what is left alone: locks of every kind, disks, devices, links, what others put there. */

import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  chownSync,
  closeSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { LockType, native } from '../../../src/native/index.js';
import { DetachedProcess } from '../../../src/operations/detached-process.js';
import { openScratch } from '../../../src/operations/files/new-file.js';
import type { Written } from '../../../src/operations/files/target.js';
import { OutputFile, withOutput } from '../../../src/operations/index.js';
import { fixture } from '../../formats/blobs.js';
import { MAIN } from '../../support/main.js';

const folder = mkdtempSync(join(tmpdir(), 'devstate-target-'));
t.teardown(() => rmSync(folder, { recursive: true }));
const path = (name: string): string => join(folder, name);
const isRoot = process.geteuid?.() === 0;
const blob = fixture('minimal.bin');

const write = (name: string, options: { written?: Written; force?: boolean; inputs?: string[] } = {}) =>
  withOutput(path(name), async (output) => output.write(blob), { written: 'blob', ...options });

/** Refused, and what is there is as it was. */
async function refused(t: Test, name: string, why: RegExp, written: Written = 'blob'): Promise<void> {
  const before = lstatSync(path(name));
  await t.rejects(write(name, { written }), { code: 'DEVSTATE_E_OUTPUT', message: why }, `${name}: ${why}`);
  const after = lstatSync(path(name));
  t.same([after.ino, after.size, after.mtimeMs], [before.ino, before.size, before.mtimeMs], 'untouched');
}

/** A process of its own that holds a lock on a file, until the test ends. */
async function lockElsewhere(t: Test, name: string, how: 'flock' | 'lockf'): Promise<void> {
  const code = `import fcntl,sys\nf=open(sys.argv[1],'r+')\nfcntl.${how}(f,fcntl.LOCK_EX)\nprint('locked',flush=True)\nsys.stdin.read()`;
  const holder = spawn('python3', ['-c', code, path(name)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const gone = once(holder, 'exit');
  t.teardown(async () => {
    holder.kill('SIGKILL');
    await gone;
  });
  await once(holder.stdout, 'data');
}

t.test(
  'a file that somebody has locked, by whichever lock and by whichever name, is left alone',
  async (t) => {
    writeFileSync(path('state'), blob);
    linkSync(path('state'), path('hard'));
    symlinkSync('state', path('soft'));
    for (const how of ['flock', 'lockf'] as const) {
      await t.test(how, async (t) => {
        await lockElsewhere(t, 'state', how);
        for (const name of ['state', 'hard', 'soft']) await refused(t, name, /in use.*--force/);
      });
    }
    await t.test('the lock of an open file', async (t) => {
      const fd = openSync(path('state'), 'r+');
      t.teardown(() => closeSync(fd));
      t.equal(native.setLock(fd, LockType.write, 100, 1), 0);
      for (const name of ['state', 'hard', 'soft']) await refused(t, name, /in use/);
      await refused(t, 'state', /in use/, 'any');
      const warnings: string[] = [];
      const options = { written: 'blob', force: true, warn: (text: string) => warnings.push(text) } as const;
      await withOutput(path('hard'), async (output) => output.write(blob), options);
      t.match(warnings, [/hard: .*in use.*lost when it ends/]);
      t.not(statSync(path('hard')).ino, statSync(path('state')).ino);
    });
    await write('soft');
    t.ok(lstatSync(path('soft')).isSymbolicLink(), 'not locked any more: replaced, and the link stays');
  },
);

t.test('only what is of the kind that is written is replaced', async (t) => {
  const cases: [name: string, bytes: Uint8Array | string, why: RegExp][] = [
    ['qcow2', Buffer.from('514649fb00000003', 'hex'), /a qcow2 disk image \(version 3\)/],
    ['text', 'precious\n', /a text file/],
    ['xml', '<domain type="kvm"/>', /the XML of a libvirt domain/],
    ['zeros', new Uint8Array(4096), /zeros/],
    ['noise', Buffer.from([1, 2, 3, 200, 4, 5]), /a file of an unknown kind/],
    ['stream', readFileSync('formats/fixtures/foreign/qemu-none.bin'), /a QEMU migration stream/],
  ];
  for (const [name, bytes, why] of cases) {
    writeFileSync(path(name), bytes);
    await refused(t, name, why);
    await write(name, { written: 'any' });
    t.same(readFileSync(path(name)), Buffer.from(blob));
  }
  writeFileSync(path('disk'), '');
  truncateSync(path('disk'), 1 << 20);
  await refused(t, 'disk', /zeros/);
  writeFileSync(path('empty'), '');
  await write('empty');
  await write('empty');
  t.same(readFileSync(path('empty')), Buffer.from(blob));
  await refused(t, 'empty', /a saved device state/, 'device-stream');
  await t.rejects(write('empty', { inputs: [path('empty')] }), { message: /it is the file that is read/ });
});

t.test('folders, sockets, devices, links that lead nowhere', async (t) => {
  mkdirSync(path('folder'));
  await refused(t, 'folder', /it is a folder/);
  symlinkSync('nothing', path('dangling'));
  await refused(t, 'dangling', /leads nowhere/);
  const fd = native.unixListen(path('socket'), 0o600, 1);
  await refused(t, 'socket', /a socket is there/);
  await t.rejects(write('socket', { force: true }), { message: /a socket is there/ });
  native.close(fd);
  await t.rejects(write('no/where'), { message: /there is no folder .*no; make it first/ });
  await withOutput('/dev/null', async (output) => output.write(blob), { written: 'blob' });
  t.ok(lstatSync('/dev/null').isCharacterDevice());
  if (!isRoot) return;
  try {
    execFileSync('mknod', [path('block'), 'b', '7', '200'], { stdio: 'pipe' });
    execFileSync('mknod', [path('kmsg'), 'c', '1', '11'], { stdio: 'pipe' });
  } catch {
    return; // not in this container
  }
  await refused(t, 'block', /it is a block device.*--force: what is stored on it is overwritten/);
  await refused(t, 'kmsg', /character device/);
});

t.test('nothing has a name before it is whole, and the name is taken in one step', async (t) => {
  mkdirSync(path('quiet'));
  const output = await OutputFile.create(path('quiet/new'));
  output.write(blob);
  await output.flush();
  t.same(readdirSync(path('quiet')), []);
  writeFileSync(path('quiet/new'), 'first');
  await t.rejects(output.finish(), { code: 'DEVSTATE_E_OUTPUT', message: /made by somebody else meanwhile/ });
  t.equal(readFileSync(path('quiet/new'), 'utf8'), 'first');
  t.same(readdirSync(path('quiet')), ['new']);

  writeFileSync(path('quiet/state'), blob);
  const second = await OutputFile.create(path('quiet/state'));
  writeFileSync(path('quiet/state'), 'changed');
  await t.rejects(second.finish(), { message: /changed by somebody else meanwhile/ });
  t.equal(readFileSync(path('quiet/state'), 'utf8'), 'changed');
  t.same(readdirSync(path('quiet')).sort(), ['new', 'state']);
});

t.test(
  'what others put into a directory of all has no say',
  { skip: !isRoot && 'only root can be others' },
  async (t) => {
    const other = 65534;
    mkdirSync(path('open'));
    chmodSync(path('open'), 0o777);
    const plant = (code: string) =>
      execFileSync('python3', [
        '-c',
        `import os\nos.setgid(${other});os.setuid(${other});os.umask(0)\n${code}`,
      ]);
    chmodSync(folder, 0o755);
    writeFileSync(path('victim'), 'precious');
    plant(`os.symlink(${JSON.stringify(path('victim'))}, ${JSON.stringify(path('open/link'))})`);
    await refused(t, 'open/link', /a symbolic link that another user \(uid 65534\) made/);
    t.equal(readFileSync(path('victim'), 'utf8'), 'precious');
    const serving = ['serve', 'nvme', '--socket', path('nvme'), '--image', path('open/link'), '--size', '8'];
    const served = spawnSync(process.execPath, [MAIN, ...serving], { encoding: 'utf8', timeout: 60_000 });
    t.match(served, { status: 1, stderr: /a symbolic link that another user .*DEVSTATE_E_OUTPUT/ });
    // A file of theirs, of the right kind: it is replaced by one that is ours alone.
    plant(`open(${JSON.stringify(path('open/theirs'))}, 'w').close()`);
    await write('open/theirs');
    const { uid, mode } = statSync(path('open/theirs'));
    t.same([uid, mode & 0o777], [0, 0o600]);
    symlinkSync(path('victim'), path('open/ours'));
    chownSync(path('open'), other, other);
    await refused(t, 'open/ours', /a text file/);
  },
);

t.test('a file system on which nothing can be made', async (t) => {
  // It has no O_TMPFILE, as many have not: a named file is tried then.
  await t.rejects(openScratch('/proc'), /no file can be made in \/proc; choose another folder/);
  const output = withOutput('/proc/version', async (file) => file.write(blob), { written: 'blob' });
  await t.rejects(output, {
    code: 'DEVSTATE_E_OUTPUT',
    message: 'cannot write /proc/version: no file can be made in /proc; choose another folder',
  });
});

t.test('a log is appended to text only', async (t) => {
  writeFileSync(path('log'), 'a line\n');
  const process = new DetachedProcess(['/bin/echo', 'another'], path('log'));
  // It does not keep us alive.
  const waiting = setInterval(() => {}, 1000);
  await process.exited;
  clearInterval(waiting);
  t.equal(readFileSync(path('log'), 'utf8'), 'a line\nanother\n');
  writeFileSync(path('image'), Buffer.from('514649fb00000003', 'hex'));
  t.throws(() => new DetachedProcess(['/bin/echo', 'x'], path('image')), {
    code: 'DEVSTATE_E_OUTPUT',
    message: /a qcow2 disk image.*choose another path; nothing was started/,
  });
  t.equal(statSync(path('image')).size, 8);
});
