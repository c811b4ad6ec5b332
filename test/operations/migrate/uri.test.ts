// SPDX-License-Identifier: Apache-2.0
/** What a destination's QEMU would remove to listen at a path is found before it does. */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { native } from '../../../src/native/index.js';
import { requireUri, whyNotListen } from '../../../src/operations/migrate/uri.js';
import { listenAt } from '../../../src/transport/socket-path.js';

const self = { pid: process.pid };

/** A folder with a path that is short enough for sockets, and a disk image in it. */
function makeFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'devstate-uri-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  writeFileSync(join(folder, 'disk.img'), 'a disk');
  return folder;
}

t.test('kinds of URIs', async (t) => {
  for (const uri of ['unix:/run/vm/ram', 'unix:ram', 'tcp:host:4444', 'tcp::4444', 'tcp:[::1]:4444,ipv6=on'])
    t.doesNotThrow(() => requireUri(uri), uri);
  for (const uri of [
    '',
    'unix:',
    'ram.sock',
    'tcp:host',
    'exec:cat',
    'file:/tmp/vm',
    'fd:3',
    `unix:/${'x'.repeat(107)}`,
  ])
    t.throws(() => requireUri(uri), { code: 'DEVSTATE_E_USAGE' }, uri);
});

t.test('what is at the path', async (t) => {
  const folder = makeFolder(t);
  const why = (name: string) => whyNotListen(`unix:${join(folder, name)}`, self);
  t.equal(await why('ram'), undefined, 'nothing is there');
  t.match(await why('disk.img'), /a file that is not a socket is there, which QEMU would remove/);
  t.match(await why('.'), /a file that is not a socket/, 'a folder');
  t.match(await why('none/ram'), /there is no folder .*none; make it first/);
  t.match(await why('disk.img/ram'), /there is no folder/);

  const server = createServer((socket) => socket.destroy());
  let visits = 0;
  server.on('connection', () => visits++);
  await once(server.listen(join(folder, 'live')), 'listening');
  t.match(await why('live'), /a process listens at .*live, which QEMU would cut off/);
  t.equal(visits, 0, 'found without connecting');
  server.close();
  await once(server, 'close');
});

t.test('the socket of a server, which has renamed it', async (t) => {
  const path = join(makeFolder(t), 'a.mig');
  const fd = listenAt(path, 0o600, 1);
  t.match(await whyNotListen(`unix:${path}`, self), /a process listens at .*a.mig/);
  native.close(fd);
  t.equal(await whyNotListen(`unix:${path}`, self), undefined);
});

t.test('a socket that its process has left behind may be replaced', async (t) => {
  const path = join(makeFolder(t), 'left-behind');
  const listen = `require('net').createServer().listen(${JSON.stringify(path)}, () => console.log('up'))`;
  const child = spawn(process.execPath, ['-e', listen], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(child.stdout, 'data');
  t.match(await whyNotListen(`unix:${path}`, self), /a process listens/);
  child.kill('SIGKILL');
  await once(child, 'exit');
  t.equal(await whyNotListen(`unix:${path}`, self), undefined);
});

t.test('a relative path is looked for in the folder of QEMU', async (t) => {
  const folder = makeFolder(t);
  const child = spawn(process.execPath, ['-e', "console.log('up'); process.stdin.resume()"], {
    cwd: folder,
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  t.match(await whyNotListen('unix:disk.img', { pid: child.pid ?? 0 }), /a file that is not a socket/);
  t.equal(await whyNotListen('unix:disk.img', self), undefined, 'in another folder there is none');
  t.equal(await whyNotListen('unix:disk.img', { pid: 0 }), undefined, 'of a QEMU elsewhere nothing is known');
});
