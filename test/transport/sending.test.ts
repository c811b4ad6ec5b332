// SPDX-License-Identifier: Apache-2.0
/** Sending: the queue behind a full socket, its limit, and peers that go away. */

import t from 'tap';
import { Errno, native } from '../../src/native/index.js';
import { MessageSocket, socketPair } from '../../src/transport/index.js';
import {
  connected,
  framing,
  idOf,
  limits,
  markedFds,
  message,
  openFds,
  Recorder,
  receiver,
  turn,
} from './support.js';

/** Fills the socket until messages have to wait; how many were sent. */
function fill(socket: MessageSocket, length = 30000): number {
  let count = 0;
  while (socket.queuedBytes === 0) socket.send(message(count++, length));
  return count;
}

t.test('what the socket does not take waits, in order, fds included', async (t) => {
  const before = openFds();
  const [mine, theirs] = socketPair();
  const sender = new MessageSocket(mine, framing, limits, new Recorder());
  let count = fill(sender);
  const fdCounts = new Map<number, number>();
  for (let i = 0; i < 20; i++) {
    const fds = markedFds(i % 4, count * 10);
    const reused = message(count, i * 100);
    t.equal(sender.send(reused, { fds }), false);
    reused.fill(0xff);
    for (const fd of fds) fd.close();
    fdCounts.set(count++, i % 4);
  }
  t.ok(sender.queuedBytes > 0);
  let drained = false;
  const waiting = sender.drained().then(() => {
    drained = true;
  });
  await turn();
  t.equal(drained, false);
  const recorder = new Recorder();
  const reader = new MessageSocket(theirs, framing, limits, recorder);
  await Promise.all([recorder.received(count), waiting]);
  t.equal(sender.queuedBytes, 0);
  t.same(
    recorder.messages.map(idOf),
    Array.from({ length: count }, (_, i) => i),
  );
  for (const [id, expected] of fdCounts) {
    const fds = recorder.fds[id]!;
    t.equal(fds.length, expected, `fds of message ${id}`);
    fds.forEach((fd, i) => void t.equal(native.eventfdRead(fd.number), id * 10 + i + 1));
  }
  recorder.closeFds();
  sender.close();
  reader.close();
  await recorder.ended();
  t.equal(openFds(), before);
});

t.test('owned parts are kept, others are copied', async (t) => {
  const [sender, , receiving, recorder] = connected();
  receiving.pause();
  const count = fill(sender);
  for (const owned of [true, false]) {
    const [head, payload] = [message(1, 0), new Uint8Array(100)];
    new DataView(head.buffer).setUint32(4, head.length + payload.length, true);
    t.equal(sender.send([head, payload], { owned }), false);
    payload[99] = 0x11;
  }
  receiving.resume();
  await recorder.received(count + 2);
  const [kept, copied] = recorder.messages.slice(-2);
  t.equal(kept!.at(-1), 0x11, 'the change made it, as there was no copy');
  t.equal(copied!.at(-1), 0);
  sender.close();
  await recorder.ended();
});

t.test('a peer that does not read is given up at the limit', async (t) => {
  const { socket, recorder, peer } = receiver({ maxQueuedBytes: 100000 });
  while (!socket.isClosed) {
    socket.send(message(1, 10000));
    t.ok(socket.queuedBytes <= 100000);
  }
  t.equal(recorder.end, undefined, 'told later, not from within send');
  t.equal(await recorder.ended(), 'DEVSTATE_E_SEND_QUEUE_FULL');
  await t.rejects(socket.drained(), { code: 'DEVSTATE_E_CONNECTION_CLOSED' });
  peer.close();
});

t.test('drained() of an empty queue resolves at once, and rejects when the peer goes', async (t) => {
  const { socket, peer, recorder } = receiver();
  await socket.drained();
  fill(socket);
  const waiting = socket.drained();
  peer.close();
  await t.rejects(waiting, { code: 'DEVSTATE_E_CONNECTION_CLOSED' });
  t.equal(await recorder.ended(), 'DEVSTATE_E_CONNECTION_CLOSED');
});

t.test('what a peer sent before it closed is still read, though it hears no reply', async (t) => {
  const recorder: Recorder = new Recorder((frame) => void socket.send(frame.bytes, { length: frame.length }));
  const { socket, peer } = receiver({}, recorder);
  for (let i = 0; i < 5; i++) native.sendMessage(peer.number, message(i, 4), 0, 20, null, 0);
  peer.close();
  t.equal(await recorder.ended(), undefined);
  t.same(recorder.messages.map(idOf), [0, 1, 2, 3, 4]);
});

t.test('a peer that goes with unread data is a lost connection', async (t) => {
  const { socket, recorder, peer } = receiver();
  socket.send(message(1, 4));
  peer.close();
  t.equal(await recorder.ended(), 'DEVSTATE_E_CONNECTION_CLOSED');
  t.equal(recorder.end?.error?.errno, Errno.ECONNRESET);
});

t.test('end() closes behind the last queued byte', async (t) => {
  const [mine, theirs] = socketPair();
  const sender = new MessageSocket(mine, framing, limits, new Recorder());
  const count = fill(sender);
  sender.end();
  t.notOk(sender.isClosed);
  const recorder = new Recorder();
  new MessageSocket(theirs, framing, limits, recorder);
  t.equal(await recorder.ended(), undefined);
  t.equal(recorder.messages.length, count);
  t.ok(sender.isClosed);
  const { socket, peer } = receiver();
  socket.end();
  t.ok(socket.isClosed, 'at once when nothing waits');
  peer.close();
});

t.test('10,000 messages with fds leak nothing', async (t) => {
  const before = openFds();
  const [sender, , receiving, recorder] = connected();
  const fds = markedFds(3, 0);
  const batch = 50;
  for (let sent = 0; sent < 10000; sent += batch) {
    for (let i = 0; i < batch; i++) sender.send(message(sent + i, 8), { fds });
    await recorder.received(sent + batch);
    recorder.closeFds();
    recorder.fds.length = 0;
  }
  t.equal(recorder.messages.length, 10000);
  for (const fd of fds) fd.close();
  sender.close();
  await recorder.ended();
  t.ok(receiving.isClosed);
  t.equal(openFds(), before);
});

t.test('more fds than a message carries are refused before anything is sent', async (t) => {
  const { socket, recorder, peer } = receiver();
  const [fd] = markedFds(1, 0);
  socket.send(message(1, 0), { fds: Array(254).fill(fd) });
  t.equal(await recorder.ended(), 'DEVSTATE_E_SYSTEM');
  fd!.close();
  peer.close();
});
