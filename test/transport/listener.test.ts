// SPDX-License-Identifier: Apache-2.0
/** Listening and connecting: whose path it is, and 1,000 clients that come and go. */

import {
  chmodSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { check, native } from '../../src/native/index.js';
import { connect, type Fd, Listener, MessageSocket, setSocketMode } from '../../src/transport/index.js';
import { framing, limits, message, openFds, Recorder, turn, withRoomFor } from './support.js';

const folder = mkdtempSync(join(tmpdir(), 'devstate-listener-'));
t.teardown(() => rmSync(folder, { recursive: true }));
const path = join(folder, 'socket');

const closeAtOnce = (fd: Fd): void => fd.close();

/** Leaves a socket at `at` that no process listens at. */
function leaveStale(at: string): void {
  native.close(check(native.unixListen(at, 0o600, 1), 'listen'));
}

t.test('nothing but the path is left where it listens, of any length that a path may have', async (t) => {
  for (const length of [folder.length + 2, 100, 107]) {
    const at = join(folder, 'x'.repeat(length - folder.length - 1));
    const before = openFds();
    const listener = Listener.listen(at, closeAtOnce);
    t.same(
      readdirSync(folder).map((name) => join(folder, name)),
      [at],
      `${length} bytes`,
    );
    (await connect(at)).close();
    listener.close();
    t.same(readdirSync(folder), []);
    t.equal(openFds(), before);
  }
});

t.test('1,000 connections leak nothing', async (t) => {
  const before = openFds();
  const accepted: Recorder[] = [];
  const listener = Listener.listen(path, (fd) => {
    const recorder: Recorder = new Recorder(
      (frame) => void socket.send(frame.bytes, { length: frame.length }),
    );
    const socket = new MessageSocket(fd, framing, limits, recorder);
    accepted.push(recorder);
  });
  for (let i = 0; i < 1000; i++) {
    const recorder = new Recorder();
    const client = new MessageSocket(await connect(path), framing, limits, recorder);
    client.send(message(i, 4));
    await recorder.received(1);
    client.close();
  }
  await Promise.all(accepted.map((recorder) => recorder.ended()));
  t.equal(accepted.length, 1000);
  listener.close();
  t.notOk(existsSync(path));
  t.equal(openFds(), before);
});

t.test('the path is private unless told otherwise, and removed on close', async (t) => {
  const listener = Listener.listen(path, closeAtOnce);
  t.equal(statSync(path).mode & 0o777, 0o600);
  listener.close();
  listener.close();
  t.notOk(existsSync(path));
  const open = Listener.listen(path, closeAtOnce, { mode: 0o700 });
  t.equal(statSync(path).mode & 0o777, 0o700);
  open.close({ keepPath: true });
  t.ok(existsSync(path), 'kept for a successor');
});

t.test('a live socket is not stolen, a stale one is replaced, a file is left alone', async (t) => {
  const listener = Listener.listen(path, closeAtOnce);
  t.throws(() => Listener.listen(path, closeAtOnce), { code: 'DEVSTATE_E_ADDRESS_IN_USE' });
  (await connect(path)).close();
  listener.close();

  leaveStale(path);
  t.ok(existsSync(path));
  const successor = Listener.listen(path, closeAtOnce);
  (await connect(path)).close();
  successor.close();

  writeFileSync(path, 'precious');
  t.throws(() => Listener.listen(path, closeAtOnce), {
    code: 'DEVSTATE_E_ADDRESS_IN_USE',
    message: /not a socket/,
  });
  t.equal(statSync(path).size, 8);
  rmSync(path);
  t.throws(() => Listener.listen(join(folder, 'x'.repeat(108)), closeAtOnce), { code: 'DEVSTATE_E_SYSTEM' });
  t.throws(() => Listener.listen(join(folder, 'no/such'), closeAtOnce), { code: 'DEVSTATE_E_SYSTEM' });
});

t.test('close removes only the socket that it made', async (t) => {
  const old = Listener.listen(path, closeAtOnce);
  renameSync(path, `${path}.old`);
  const current = Listener.listen(path, closeAtOnce);
  old.close();
  (await connect(path)).close();
  current.close();
  t.notOk(existsSync(path));
});

t.test('a listening socket can be handed over while clients wait', async (t) => {
  const before = openFds();
  const first = Listener.listen(path, closeAtOnce);
  const copy = first.duplicate();
  first.close({ keepPath: true });
  const waiting = await connect(path);
  const accepted = await new Promise<Fd>((resolve) => {
    const second = Listener.adopt(
      copy,
      (fd) => {
        second.close();
        resolve(fd);
      },
      path,
    );
  });
  t.notOk(existsSync(path));
  accepted.close();
  waiting.close();
  t.equal(openFds(), before);
});

t.test('why a connection fails', async (t) => {
  await t.rejects(connect(path), { code: 'DEVSTATE_E_CONNECT', exitCode: 5, message: /does not exist/ });
  await t.rejects(connect(folder), { code: 'DEVSTATE_E_CONNECT', message: /it is no socket/ });
  leaveStale(path);
  await t.rejects(connect(path), { code: 'DEVSTATE_E_CONNECT', message: /no process listens/ });
  rmSync(path);
  await t.rejects(connect('x'.repeat(200)), { code: 'DEVSTATE_E_CONNECT', message: /107 bytes/ });

  const full = check(native.unixListen(path, 0o600, 0), 'listen');
  const waiting = [await connect(path)];
  await t.rejects(connect(path, 30), { code: 'DEVSTATE_E_CONNECT', message: /accepts no more/ });
  const late = connect(path, 5000);
  native.close(check(native.accept(full), 'accept'));
  waiting.push(await late);
  for (const fd of waiting) fd.close();
  native.close(full);
  chmodSync(path, 0o600);
  rmSync(path);
});

t.test('the mode of a socket is set, and of nothing that was put in its place', async (t) => {
  const listener = Listener.listen(path, closeAtOnce);
  setSocketMode(path, 0o666);
  t.equal(statSync(path).mode & 0o777, 0o666);
  listener.close();
  const precious = join(folder, 'precious');
  writeFileSync(precious, '', { mode: 0o600 });
  symlinkSync(precious, path);
  t.throws(() => setSocketMode(path, 0o666), { code: 'DEVSTATE_E_ADDRESS_IN_USE' });
  t.equal(statSync(precious).mode & 0o777, 0o600);
  rmSync(path);
});

t.test('too many open files: the client waits, then is accepted', async (t) => {
  let accept: (fd: Fd) => void;
  const accepted = new Promise<Fd>((resolve) => {
    accept = resolve;
  });
  let isAccepted = false;
  const listener = Listener.listen(path, (fd) => {
    isAccepted = true;
    accept(fd);
  });
  let client: Fd | undefined;
  await withRoomFor(1, async () => {
    client = await connect(path);
    for (let i = 0; i < 5; i++) await turn();
    t.equal(isAccepted, false);
  });
  (await accepted).close();
  listener.close();
  client!.close();
});
