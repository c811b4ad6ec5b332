// SPDX-License-Identifier: Apache-2.0
/** `devstate serve sample` as a process: whom it serves, and when it ends. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import * as zlib from 'node:zlib';
import t, { type Test } from 'tap';
import { Client } from '../../src/client/index.js';
import { Devstate, devstate, devstateCommand } from '../e2e/harness/devstate-process.js';
import { socketFolder } from '../support/served.js';

async function serve(
  t: Test,
  ...args: string[]
): Promise<{ server: Devstate; socket: string; folder: string }> {
  const folder = socketFolder(t);
  const socket = join(folder, 'sample');
  const server = new Devstate(['serve', 'sample', '--socket', socket, ...args]);
  t.teardown(() => server.end());
  await server.saysOnStderr(/"msg":"serving /);
  return { server, socket, folder };
}

t.test('one client after the other, until it is asked to end', async (t) => {
  const { server, socket } = await serve(t);
  for (const _ of [1, 2]) {
    const client = await Client.connect(socket);
    const bytes = new Uint8Array(4);
    await client.regionRead(7, 0, bytes);
    t.same([...bytes], [0xad, 0xde, 0xef, 0xbe]);
    client.close();
  }
  server.signal('SIGTERM');
  t.equal(await server.exited, 0);
  t.notOk(existsSync(socket));
});

t.test('--once: until the first client leaves', async (t) => {
  const { server, socket } = await serve(t, '--once');
  const client = await Client.connect(socket);
  await client.reset();
  t.equal(server.hasEnded, false);
  client.close();
  t.equal(await server.exited, 0);
  t.notOk(existsSync(socket));
});

t.test('saved and loaded by its migration socket', async (t) => {
  const migration = join(socketFolder(t), 'migration');
  const { socket, folder } = await serve(t, '--migration-socket', migration);
  const file = join(folder, 'state');
  const vmm = await Client.connect(socket);
  t.teardown(() => vmm.close());
  await vmm.regionWrite(1, 5000, Uint8Array.of(1, 2, 3));
  t.match(await devstate('save', '--unproven', '--migration-socket', migration, '-o', file), { code: 0 });
  const { stdout } = await devstate('inspect', '-o', 'json', file);
  t.match(JSON.parse(stdout), { kind: 'envelope', format: { name: 'org.devstate.sample' }, error: null });
  await vmm.reset();
  t.match(await devstate('load', '--unproven', '--migration-socket', migration, file), { code: 0 });
  const bytes = new Uint8Array(3);
  await vmm.regionRead(1, 5000, bytes);
  t.same([...bytes], [1, 2, 3]);
});

t.test('saved compressed, with the best that this Node.js has, and loaded', async (t) => {
  const migration = join(socketFolder(t), 'migration');
  const { socket, folder } = await serve(t, '--migration-socket', migration);
  const file = join(folder, 'state');
  const vmm = await Client.connect(socket);
  t.teardown(() => vmm.close());
  await vmm.regionWrite(1, 5000, Uint8Array.of(4, 5, 6));
  t.match(await devstate('save', '--compress', '--unproven', '--migration-socket', migration, '-o', file), {
    code: 0,
  });
  const compression = 'zstdCompressSync' in zlib ? 'zstd' : 'deflate';
  const { stdout } = await devstate('inspect', '-o', 'json', file);
  const { features, records } = JSON.parse(stdout) as { features: string[]; records: object[] };
  t.same(features, [compression]);
  t.ok(records.some((record) => 'compression' in record && record.compression === compression));
  await vmm.reset();
  t.match(await devstate('load', '--unproven', '--migration-socket', migration, file), { code: 0 });
  const bytes = new Uint8Array(3);
  await vmm.regionRead(1, 5000, bytes);
  t.same([...bytes], [4, 5, 6]);
});

t.test('wrong command lines', async (t) => {
  t.match(await devstate('serve', 'sample'), { code: 2, stderr: /--socket <path>/ });
  const nowhere = await devstate('serve', 'sample', '--socket', '/nowhere/s');
  t.match(nowhere, { code: 1, stderr: /listen at \/nowhere\/s/ });
});

t.test('as a successor it is refused, and its predecessor is not said to be in the way', async (t) => {
  const migration = join(socketFolder(t), 'migration');
  const { server, socket } = await serve(t, '--migration-socket', migration);
  const successor = devstateCommand('serve', 'sample', '--socket', socket, '--migration-socket', migration);
  const { code, stderr } = await devstate('upgrade', '--migration-socket', migration, '--', ...successor);
  t.equal(code, 1);
  t.match(stderr, /the sample device cannot be handed over: .*DEVSTATE_E_NOT_MIGRATABLE/);
  t.match(stderr, /; the old server continues/);
  t.equal(server.hasEnded, false);
});
