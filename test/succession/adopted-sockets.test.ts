// SPDX-License-Identifier: Apache-2.0
/** Sockets of a predecessor: no one is accepted before the successor starts, and one that gives up closes no path. */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Bundle, FdKind } from '../../src/handoff/index.js';
import { AdoptedSockets, SocketName } from '../../src/succession/adopted-sockets.js';
import { closeAll, connect, type Fd, Listener, socketPair } from '../../src/transport/index.js';
import { openFds } from '../support/closes.js';
import { socketFolder, until } from '../support/served.js';

/** A predecessor that listens, and what it would hand over: its listening socket, and clients that wait. */
function predecessor(t: Test, clients: number) {
  const path = join(socketFolder(t), 'vmm');
  const accepted: Fd[] = [];
  const listener = Listener.listen(path, (fd) => accepted.push(fd));
  listener.pause();
  const others: Fd[] = [];
  const bundle = new Bundle();
  bundle.add([{ kind: FdKind.LISTENER, name: SocketName.listener }], [listener.duplicate()]);
  for (let index = 0; index < clients; index++) {
    const [client, other] = socketPair();
    bundle.add([{ kind: FdKind.SOCKET, name: SocketName.waiting(index) }], [client]);
    others.push(other);
  }
  t.teardown(() => {
    bundle.close();
    listener.close();
    closeAll([...accepted, ...others]);
  });
  return { path, listener, accepted, bundle };
}

t.test('who connects meanwhile is accepted once the successor starts', async (t) => {
  const { path, bundle } = predecessor(t, 2);
  const sockets = new AdoptedSockets(bundle);
  const accepted: Fd[] = [];
  sockets.takeListener(SocketName.listener, path, (fd) => accepted.push(fd));
  sockets.takeWaiting(2);
  bundle.requireAllTaken();
  t.equal(sockets.waiting.length, 2);
  const client = await connect(path);
  for (let turn = 0; turn < 20; turn++) await new Promise(setImmediate);
  t.equal(accepted.length, 0);
  sockets.resume();
  await until(() => accepted.length === 1);
  sockets.close();
  closeAll([client, ...accepted]);
});

t.test('a successor that gives up closes what it has, and its predecessor listens on', async (t) => {
  const { path, listener, accepted, bundle } = predecessor(t, 1);
  const before = openFds();
  const sockets = new AdoptedSockets(bundle);
  sockets.takeListener(SocketName.listener, path, () => t.fail('accepted by the successor'));
  t.throws(() => sockets.takeWaiting(2), {
    code: 'DEVSTATE_E_HANDOFF_BUNDLE',
    message: /waiting:1 is missing/,
  });
  sockets.close();
  // The duplicate of the listening socket, and the client that did come.
  t.equal(openFds(), before - 2);
  t.ok(existsSync(path));
  const client = await connect(path);
  listener.resume();
  await until(() => accepted.length === 1);
  client.close();
});
