// SPDX-License-Identifier: Apache-2.0
/** Framing: which bytes and fds make which message, whatever the kernel does to the stream. */

import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import t from 'tap';
import { DevstateError } from '../../src/errors.js';
import { Errno, native } from '../../src/native/index.js';
import { MessageSocket, socketPair } from '../../src/transport/index.js';
import {
  connected,
  framing,
  HEADER,
  idOf,
  limits,
  markedFds,
  message,
  openFds,
  Recorder,
  rawSend,
  receiver,
  turn,
  withRoomFor,
} from './support.js';

t.test('messages arrive whole and in order, header-only ones too', async (t) => {
  const [a, , b, recorder] = connected();
  const sent = [message(1, 0), message(2, 5), message(3, 60000), message(4, 0)];
  for (const bytes of sent) a.send(bytes);
  a.send([message(5, 3), message(6, 0)]);
  a.send(message(7, 100), { length: HEADER + 100 });
  await recorder.received(7);
  t.same(recorder.messages.slice(0, 4), sent);
  t.same(recorder.messages.slice(4).map(idOf), [5, 6, 7]);
  a.close();
  t.equal(await recorder.ended(), undefined);
  t.ok(b.isClosed);
});

t.test('a message split at every byte', async (t) => {
  const { recorder, peer } = receiver();
  const bytes = message(1, 24);
  for (let cut = 1; cut < bytes.length; cut++) {
    rawSend(peer, bytes.subarray(0, cut));
    await turn();
    t.equal(recorder.messages.length, cut - 1);
    rawSend(peer, bytes.subarray(cut));
    await recorder.received(cut);
    t.same(recorder.messages[cut - 1], bytes);
  }
  peer.close();
  t.equal(await recorder.ended(), undefined);
});

t.test('any split of any stream yields the same messages', async () => {
  const streams = fc.array(fc.nat(300), { minLength: 1, maxLength: 30 });
  await fc.assert(
    fc.asyncProperty(streams, fc.array(fc.nat(600), { maxLength: 40 }), async (lengths, pieces) => {
      const sent = lengths.map((length, i) => message(i, length));
      const stream = Buffer.concat(sent);
      const { recorder, peer } = receiver();
      let at = 0;
      for (const piece of pieces) {
        const end = Math.min(at + piece, stream.length);
        if (end > at) rawSend(peer, stream.subarray(at, end));
        at = end;
        if (piece % 3 === 0) await turn();
      }
      if (at < stream.length) rawSend(peer, stream.subarray(at));
      peer.close();
      const code = await recorder.ended();
      return (
        code === undefined &&
        Buffer.concat(recorder.messages).equals(stream) &&
        recorder.messages.length === sent.length
      );
    }),
    { numRuns: 60 },
  );
});

t.test('each fd belongs to the message it was sent with, in a burst of 100', async (t) => {
  const before = openFds();
  const { recorder, peer } = receiver();
  for (let i = 0; i < 100; i++) {
    const fds = markedFds((i * 7) % 6, i * 10);
    rawSend(
      peer,
      message(i, (i * 13) % 50),
      fds.map((fd) => fd.number),
    );
    for (const fd of fds) fd.close();
  }
  await recorder.received(100);
  recorder.fds.forEach((fds, i) => {
    const marks = fds.map((fd) => native.eventfdRead(fd.number));
    t.same(
      marks,
      Array.from({ length: (i * 7) % 6 }, (_, k) => i * 10 + k + 1),
      `message ${i}`,
    );
  });
  recorder.closeFds();
  peer.close();
  await recorder.ended();
  t.equal(openFds(), before);
});

t.test('fds that the handler leaves are closed, and those it takes are close-on-exec', async (t) => {
  const before = openFds();
  const recorder = new Recorder((frame) => {
    if (frame.length === HEADER) for (const fd of frame.fds) fd.close();
  });
  const { peer } = receiver({}, recorder);
  const fds = markedFds(3, 0);
  const numbers = fds.map((fd) => fd.number);
  rawSend(peer, message(1, 0), numbers);
  rawSend(peer, message(2, 1), numbers);
  await recorder.received(2);
  t.equal(recorder.fds[0]!.length, 0);
  t.equal(recorder.fds[1]!.length, 3);
  const flags = readFileSync(`/proc/self/fdinfo/${recorder.fds[1]![0]!.number}`, 'utf8');
  t.match(flags, /flags:\s+0?[0-7]*2[0-7]{6}\b/, 'O_CLOEXEC');
  recorder.closeFds();
  for (const fd of fds) fd.close();
  peer.close();
  await recorder.ended();
  t.equal(openFds(), before);
});

t.test('what makes a stream untrustworthy', async (t) => {
  const short = message(1, 0);
  new DataView(short.buffer).setUint32(4, HEADER - 1, true);
  const long = message(1, 0);
  new DataView(long.buffer).setUint32(4, limits.maxMessageLength + 1, true);
  const whole = message(1, 40);
  const fds = markedFds(9, 0);
  const numbers = fds.map((fd) => fd.number);
  const before = openFds();
  const cases: [string, string, (send: (bytes: Uint8Array, fds?: number[]) => void) => void][] = [
    ['a length below the header', 'DEVSTATE_E_MESSAGE_LENGTH', (send) => send(short)],
    ['a length above the limit', 'DEVSTATE_E_MESSAGE_LENGTH', (send) => send(long, numbers.slice(0, 2))],
    ['garbage', 'DEVSTATE_E_MESSAGE_LENGTH', (send) => send(new Uint8Array(100).fill(0xee))],
    ['too many fds', 'DEVSTATE_E_MESSAGE_FDS', (send) => send(whole, numbers)],
    [
      'too many fds in two parts of a header',
      'DEVSTATE_E_MESSAGE_FDS',
      (send) => {
        send(whole.subarray(0, 5), numbers.slice(0, 5));
        send(whole.subarray(5), numbers.slice(0, 5));
      },
    ],
    [
      'fds with the body',
      'DEVSTATE_E_MESSAGE_FDS',
      (send) => {
        send(whole.subarray(0, HEADER), numbers.slice(0, 1));
        send(whole.subarray(HEADER), numbers.slice(0, 1));
      },
    ],
    [
      'fds in the middle of the body',
      'DEVSTATE_E_MESSAGE_FDS',
      (send) => {
        send(whole.subarray(0, 30));
        send(whole.subarray(30), numbers.slice(0, 1));
      },
    ],
    ['the end within the header', 'DEVSTATE_E_MESSAGE_TRUNCATED', (send) => send(whole.subarray(0, 9))],
    [
      'the end within the body',
      'DEVSTATE_E_MESSAGE_TRUNCATED',
      (send) => send(whole.subarray(0, 30), [numbers[0]!]),
    ],
    ['the end after a header', 'DEVSTATE_E_MESSAGE_TRUNCATED', (send) => send(whole.subarray(0, HEADER))],
  ];
  for (const [name, code, attack] of cases) {
    const { recorder, peer } = receiver();
    attack((bytes, given = []) => rawSend(peer, bytes, given));
    peer.close();
    t.equal(await recorder.ended(), code, name);
    t.equal(recorder.messages.length, 0, `${name}: nothing is delivered`);
    t.equal(openFds(), before, `${name}: nothing leaks`);
  }
  for (const fd of fds) fd.close();
});

t.test('garbage of any kind ends in a named error or a clean close, and leaks nothing', async (t) => {
  const before = openFds();
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ maxLength: 200 }), fc.nat(3), async (bytes, fdCount) => {
      const { recorder, peer } = receiver();
      const fds = markedFds(fdCount, 0);
      if (bytes.length > 0)
        rawSend(
          peer,
          bytes,
          fds.map((fd) => fd.number),
        );
      for (const fd of fds) fd.close();
      peer.close();
      const code = await recorder.ended();
      recorder.closeFds();
      return code === undefined || code.startsWith('DEVSTATE_E_MESSAGE_');
    }),
    { numRuns: 100 },
  );
  t.equal(openFds(), before);
});

t.test('fds that the kernel had to drop end the connection; those that arrived are closed', async (t) => {
  const { socket, recorder, peer } = receiver();
  socket.pause();
  const fds = markedFds(6, 0);
  rawSend(
    peer,
    message(1, 0),
    fds.map((fd) => fd.number),
  );
  for (const fd of fds) fd.close();
  await withRoomFor(3, async () => {
    const before = openFds();
    socket.resume();
    t.equal(await recorder.ended(), 'DEVSTATE_E_MESSAGE_FDS');
    t.equal(openFds(), before - 1, 'even the socket is closed');
  });
  t.match(recorder.end?.error?.message, /lost/);
  t.equal(recorder.messages.length, 0);
  peer.close();
});

t.test('a half-sent message holds up no other peer', async (t) => {
  const slow = receiver();
  const quick = receiver();
  rawSend(slow.peer, message(1, 100).subarray(0, 50));
  for (let i = 1; i <= 10; i++) {
    rawSend(quick.peer, message(i, 10));
    await quick.recorder.received(i);
  }
  t.equal(slow.recorder.messages.length, 0);
  rawSend(slow.peer, message(1, 100).subarray(50));
  await slow.recorder.received(1);
  slow.socket.close();
  quick.socket.close();
  slow.peer.close();
  quick.peer.close();
});

t.test('a flood leaves turns to others', async (t) => {
  const { socket, recorder, peer } = receiver();
  for (let i = 0; i < 200; i++) rawSend(peer, message(i, 0));
  const counts: number[] = [];
  while (recorder.messages.length < 200) {
    counts.push(recorder.messages.length);
    await turn();
  }
  t.ok(counts.length >= 3, `the loop turned ${counts.length} times`);
  socket.close();
  peer.close();
});

t.test('pause and resume, also within a message', async (t) => {
  const recorder: Recorder = new Recorder(() => socket.pause());
  const { socket, peer } = receiver({}, recorder);
  for (let i = 1; i <= 3; i++) rawSend(peer, message(i, 4));
  for (let i = 1; i <= 3; i++) {
    await recorder.received(i);
    await turn();
    await turn();
    t.equal(recorder.messages.length, i, 'nothing while paused');
    socket.resume();
  }
  socket.close();
  peer.close();
});

t.test('an exception of the handler closes the connection with it', async (t) => {
  const before = openFds();
  const recorder = new Recorder(() => {
    throw new DevstateError('DEVSTATE_E_USAGE', 'thrown');
  });
  const { peer } = receiver({}, recorder);
  const [fd] = markedFds(1, 0);
  rawSend(peer, message(1, 0), [fd!.number]);
  rawSend(peer, message(2, 0));
  t.equal(await recorder.ended(), 'DEVSTATE_E_USAGE');
  t.equal(recorder.messages.length, 1);
  fd!.close();
  peer.close();
  t.equal(openFds(), before);
});

t.test('close within a message: nothing more is delivered', async (t) => {
  const recorder: Recorder = new Recorder(() => socket.close());
  const { socket, peer } = receiver({}, recorder);
  rawSend(peer, Buffer.concat([message(1, 0), message(2, 0)]));
  t.equal(await recorder.ended(), undefined);
  t.equal(recorder.messages.length, 1);
  t.equal(socket.send(message(1, 0)), false);
  peer.close();
});

t.test('a kept frame stays as it is while later messages arrive', async (t) => {
  const kept: Uint8Array[] = [];
  const recorder: Recorder = new Recorder((frame) => {
    kept.push(frame.bytes.subarray(0, frame.length));
    if (kept.length % 2 === 1) socket.keepFrame();
  });
  const { socket, peer } = receiver({}, recorder);
  const sent = [5000, 10, 20000, 3].map((length, i) => message(i, length));
  for (const bytes of sent) rawSend(peer, bytes);
  await recorder.received(4);
  t.same(recorder.messages, sent);
  t.same(kept[0], sent[0]);
  t.same(kept[2], sent[2]);

  const split = message(9, 9000);
  rawSend(peer, split.subarray(0, 6000));
  await turn();
  socket.keepFrame();
  rawSend(peer, split.subarray(6000));
  await recorder.received(5);
  t.same(recorder.messages[4], split, 'outside of a message it disturbs nothing');
  socket.close();
  peer.close();
});

t.test('detach gives the socket away between two messages', async (t) => {
  const { socket, recorder, peer } = receiver();
  const bytes = message(1, 8);
  rawSend(peer, bytes.subarray(0, 10));
  await turn();
  t.notOk(socket.isIdle);
  t.throws(() => socket.detach(), { code: 'DEVSTATE_E_CONNECTION_BUSY' });
  rawSend(peer, bytes.subarray(10));
  await recorder.received(1);
  const fd = socket.detach();
  rawSend(peer, message(2, 0));
  await turn();
  t.equal(recorder.messages.length, 1);
  t.throws(() => socket.detach(), { code: 'DEVSTATE_E_CONNECTION_CLOSED' });
  const successor = new Recorder();
  const next = new MessageSocket(fd, framing, limits, successor);
  await successor.received(1);
  t.equal(idOf(successor.messages[0]!), 2);
  t.equal(recorder.end, undefined);
  next.close();
  peer.close();
});

t.test('an fd that cannot be watched is closed and refused', async (t) => {
  const before = openFds();
  const [mine, peer] = socketPair();
  native.close(mine.number);
  t.throws(() => new MessageSocket(mine, framing, limits, new Recorder()), {
    code: 'DEVSTATE_E_SYSTEM',
    errno: Errno.EBADF,
  });
  t.notOk(mine.isOpen);
  peer.close();
  t.equal(openFds(), before);
});

t.test('the peer is known by its credentials', async (t) => {
  const { socket, peer } = receiver();
  t.same(socket.peerCredentials, { pid: process.pid, uid: process.getuid!(), gid: process.getgid!() });
  socket.close();
  peer.close();
});
