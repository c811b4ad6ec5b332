// SPDX-License-Identifier: Apache-2.0
/** Several processes that begin to listen at one path at once: exactly one serves, whatever was left there. */

import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { check, LockType, native } from '../../src/native/index.js';
import { connect, Listener } from '../../src/transport/index.js';
import type { StarterOrder } from './starter.js';

const folder = mkdtempSync(join(tmpdir(), 'devstate-starters-'));
t.teardown(() => rmSync(folder, { recursive: true }));
const path = join(folder, 'socket');
/** Until all that are told have heard of it. */
const LEAD_MS = 15;

function leaveStale(): void {
  rmSync(path, { force: true });
  native.close(check(native.unixListen(path, 0o600, 1), 'listen'));
}

function start(): ChildProcess {
  return fork(fileURLToPath(new URL('./starter.js', import.meta.url)));
}

async function ask(child: ChildProcess, order: StarterOrder): Promise<unknown> {
  const answer = once(child, 'message');
  child.send(order);
  const [said] = await answer;
  return said;
}

/** The process that listens there. */
async function listenerAt(path: string): Promise<number> {
  const fd = await connect(path);
  const credentials = new Int32Array(3);
  check(native.peerCredentials(fd.number, credentials), 'ask who listens');
  fd.close();
  return credentials[0]!;
}

for (const [count, rounds] of [
  [2, 60],
  [3, 60],
] as const) {
  t.test(`${count} at a stale path, ${rounds} times: exactly one serves`, async (t) => {
    const children = Array.from({ length: count }, start);
    t.teardown(() => children.map((child) => child.disconnect()));
    for (let round = 0; round < rounds; round++) {
      leaveStale();
      const at = Date.now() + LEAD_MS;
      const said = await Promise.all(children.map((child) => ask(child, { path, at })));
      const expected = ['serves', ...Array(count - 1).fill('DEVSTATE_E_ADDRESS_IN_USE')];
      if (JSON.stringify([...said].sort().reverse()) !== JSON.stringify(expected)) t.same(said, expected);
      const server = children[said.indexOf('serves')]!;
      // The path is that one's, and nothing else is left beside it.
      if ((await listenerAt(path)) !== server.pid) t.fail('it serves at no path');
      if (readdirSync(folder).length !== 1) t.same(readdirSync(folder), ['socket']);
      await ask(server, { leave: true });
    }
    t.pass(`${rounds} rounds`);
  });
}

t.test(
  'one of three is killed while it begins: at most one serves, and the path can be taken again',
  async (t) => {
    const children = Array.from({ length: 3 }, start);
    t.teardown(() => children.map((child) => child.disconnect()));
    for (let round = 0; round < 25; round++) {
      leaveStale();
      const at = Date.now() + LEAD_MS;
      const victim = children[round % 3]!;
      const gone = once(victim, 'exit');
      victim.send({ path, at });
      const others = children.filter((child) => child !== victim);
      const answers = Promise.all(others.map((child) => ask(child, { path, at })));
      // Somewhere around its work.
      while (performance.timeOrigin + performance.now() < at + (round % 5) * 0.2);
      victim.kill('SIGKILL');
      const said = await answers;
      await gone;
      const serving = others.filter((_, index) => said[index] === 'serves');
      if (serving.length > 1) t.fail(`round ${round}: two serve`);
      for (const server of serving) {
        t.equal(await listenerAt(path), server.pid);
        await ask(server, { leave: true });
      }
      Listener.listen(path, (fd) => fd.close()).close();
      if (readdirSync(folder).length > 0) t.same(readdirSync(folder), [], `round ${round}`);
      children[round % 3] = start();
    }
  },
);

t.test('who begins while another holds the lock gets an error that says so', async (t) => {
  const fd = openSync(join(folder, '.socket.lock'), 'w', 0o600);
  t.equal(native.setLock(fd, LockType.write, 0, 0), 0);
  t.throws(() => Listener.listen(path, (fd) => fd.close()), {
    code: 'DEVSTATE_E_ADDRESS_IN_USE',
    message: /another process begins to listen/,
  });
  closeSync(fd);
  Listener.listen(path, (fd) => fd.close()).close();
  t.same(readdirSync(folder), []);
});
