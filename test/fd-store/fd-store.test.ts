// SPDX-License-Identifier: Apache-2.0
/** Fds that are kept by another process, in the service manager's protocol: both ends, over real sockets. */

import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  decodeNotification,
  encodeNotification,
  FdHolder,
  FdStore,
  Notifier,
  takeServiceEnvironment,
} from '../../src/fd-store/index.js';
import { check, native } from '../../src/native/index.js';
import { Fd } from '../../src/transport/index.js';

function eventfd(initial = 0): Fd {
  return new Fd(check(native.eventfdCreate(initial), 'make an eventfd'));
}

function pair(t: Test, capacity = 100) {
  const directory = mkdtempSync('/tmp/devstate-fd-store-');
  const path = join(directory, 'notify');
  let ready = 0;
  const holder = new FdHolder(path, capacity, () => ready++);
  const notifier = new Notifier(path);
  t.teardown(() => {
    notifier.close();
    holder.close();
    rmSync(directory, { recursive: true });
  });
  const names = (): string[] => {
    holder.drain();
    return holder.kept.map(({ name }) => name);
  };
  return { holder, notifier, names, path, readied: () => ready };
}

t.test('notifications: as sd_notify(3) has them', async (t) => {
  for (const notification of [
    { kind: 'store', name: 'fd-1' },
    { kind: 'remove', name: 'fd-1' },
    { kind: 'ready' },
  ] as const)
    t.same(decodeNotification(encodeNotification(notification)), notification);
  t.equal(
    Buffer.from(encodeNotification({ kind: 'store', name: 'x' })).toString(),
    'FDSTORE=1\nFDNAME=x\nFDPOLL=0',
  );
  const decode = (text: string) => decodeNotification(Buffer.from(text));
  t.same(decode('READY=1\nSTATUS=all is well\n'), { kind: 'ready' });
  t.same(decode('FDSTORE=1'), { kind: 'store', name: 'stored' });
  for (const text of [
    '',
    'STATUS=x',
    'FDSTORE=1\nFDNAME=a:b',
    'FDSTORE=1\nFDNAME=',
    `FDSTORE=1\nFDNAME=${'x'.repeat(256)}`,
  ])
    t.equal(decode(text), undefined, text.slice(0, 40));
});

t.test('an open file is kept once, and removed when no device uses it any more', async (t) => {
  const { holder, notifier, names } = pair(t);
  const store = new FdStore(notifier, 3);
  const first = eventfd();
  const second = eventfd();
  const one = store.keep(first);
  const copy = first.duplicate();
  const same = store.keep(copy);
  const other = store.keep(second);
  t.equal(same.number, one.number);
  t.not(other.number, one.number, 'another eventfd');
  t.same(names(), ['fd-1', 'fd-2']);
  native.eventfdSignal(holder.kept[0]!.fd.number);
  t.equal(native.eventfdRead(first.number), 1, 'the very open file');
  one.release();
  one.release();
  store.flush();
  t.same(names(), ['fd-1', 'fd-2'], 'it has another user');
  same.release();
  t.same(names(), ['fd-1', 'fd-2'], 'not before it is certain');
  store.keep(copy).release();
  store.flush();
  t.same(names(), ['fd-2']);
  t.equal(store.put(first), 3);
  store.keep(copy);
  t.throws(() => store.keep(eventfdOf(t)), { message: /keeps at most 3/ }, 'no more than the manager keeps');
  store.close();
  t.same(names(), []);
  for (const fd of [first, second, copy]) fd.close();
});

function eventfdOf(t: Test): Fd {
  const fd = eventfd();
  t.teardown(() => fd.close());
  return fd;
}

t.test('a successor: takes what it is given, and has the rest removed', async (t) => {
  const { notifier, names } = pair(t);
  const [a, b, c, foreign] = [eventfd(1), eventfd(2), eventfd(3), eventfd()];
  const store = new FdStore(notifier, 10, [
    { name: 'fd-7', fd: a },
    { name: 'fd-9', fd: b },
    { name: 'fd-12', fd: c },
    { name: 'journal-of-another', fd: foreign },
  ]);
  t.notOk(foreign.isOpen);
  t.equal(store.size, 3);
  const taken = store.take(9);
  t.equal(native.eventfdRead(taken.number), 2);
  const reused = store.reuse(7);
  t.equal(store.fdOf(7), reused.fd);
  t.throws(() => store.take(9), { message: /fd-9 was not kept/ });
  t.throws(() => store.reuse(8), { message: /fd-8 was not kept/ });
  store.flush();
  t.notOk(store.has(12), 'its purpose is not known');
  const made = eventfd();
  t.equal(store.keep(made).number, 13, 'a number that never was');
  t.same(names(), ['fd-13']);
  for (const fd of [taken, made]) fd.close();
  store.close();
});

t.test(
  'what was sent is there although its sender has gone, and a manager that is gone is no mystery',
  async (t) => {
    const { holder, names, path, readied } = pair(t, 2);
    const notifier = new Notifier(path);
    const fd = eventfd();
    notifier.send({ kind: 'ready' });
    for (const name of ['x', 'y', 'z']) notifier.send({ kind: 'store', name }, fd);
    notifier.close();
    fd.close();
    t.same(names(), ['x', 'y'], 'as many as it keeps');
    t.equal(readied(), 1);
    const late = new Notifier(path);
    holder.close();
    t.throws(() => late.send({ kind: 'ready' }), { code: 'DEVSTATE_E_SYSTEM' });
    const store = new FdStore(late, 2);
    const one = eventfd();
    const lost: unknown[] = [];
    store.onLost = (error) => lost.push(error);
    t.equal(store.keep(one).number, 1, 'the service continues without');
    store.keep(eventfdOf(t)).release();
    store.flush();
    t.match(lost, [{ code: 'DEVSTATE_E_SYSTEM' }], 'and says so once');
    store.close();
    late.close();
    one.close();
    t.throws(() => new Notifier(join(path, 'nowhere')), { code: 'DEVSTATE_E_SYSTEM' });
  },
);

t.test('the environment: taken once, and only by the process that it is for', async (t) => {
  const env = {
    NOTIFY_SOCKET: '/x',
    FDSTORE: '5',
    LISTEN_PID: '1',
    LISTEN_FDS: '2',
    LISTEN_FDNAMES: 'a:b',
    OTHER: 'y',
  };
  t.same(takeServiceEnvironment({ force: false }, env), { notifySocket: '/x', capacity: 5, fds: [] });
  t.same(env, { OTHER: 'y' });
  t.equal(takeServiceEnvironment({ force: false }, { NOTIFY_SOCKET: '@a' }).capacity, 0);
  t.ok(takeServiceEnvironment({ force: true }, { NOTIFY_SOCKET: '@a' }).capacity > 1e6);
});

t.test('an abstract address', async (t) => {
  const name = `@devstate-test-${process.pid}`;
  const listening = new Fd(check(native.datagramListen(name, 0o600), 'listen'));
  const notifier = new Notifier(name);
  notifier.send({ kind: 'ready' });
  const bytes = new Uint8Array(64);
  const got = native.receiveMessage(listening.number, bytes, 0, 64, new Int32Array(8));
  t.equal(Buffer.from(bytes.subarray(0, got)).toString(), 'READY=1');
  for (const one of [notifier, listening]) one.close();
});
