// SPDX-License-Identifier: Apache-2.0
/** Bytes and fds over a stream socket: reads as long as they are wanted, ends one by one, nothing left open. */

import fc from 'fast-check';
import t from 'tap';
import { native } from '../../src/native/index.js';
import { type Fd, type StreamHandler, StreamSocket, socketPair } from '../../src/transport/index.js';
import { eventfd } from '../support/memory.js';
import { until } from '../support/served.js';
import { openFds } from './support.js';

const LIMIT = { maxQueuedBytes: 1 << 20 };

class Recorder implements StreamHandler {
  wanted = 1 << 20;
  readonly bytes: Buffer[] = [];
  readonly counts: number[] = [];
  isEnded = false;
  error: unknown;
  onData: (fds: readonly Fd[]) => void = () => {};

  data(bytes: Uint8Array, fds: readonly Fd[]): void {
    this.bytes.push(Buffer.from(bytes));
    this.counts.push(fds.length);
    this.onData(fds);
  }

  ended(): void {
    if (this.isEnded) throw new Error('ended twice');
    this.isEnded = true;
  }

  lost(error: unknown): void {
    if (this.error !== undefined) throw new Error('lost twice');
    this.error = error;
  }

  get text(): string {
    return Buffer.concat(this.bytes).toString('latin1');
  }
}

function pair(limits = LIMIT) {
  const [left, right] = socketPair();
  const [a, b] = [new Recorder(), new Recorder()];
  return { a, b, left: new StreamSocket(left, a, limits), right: new StreamSocket(right, b, limits) };
}

t.test('what is sent arrives, and fds with the byte they were sent with', async (t) => {
  const before = openFds();
  const { a, b, left, right } = pair();
  const fd = eventfd();
  // With reads that end where the fds are wanted, they are distinguished.
  const lengths = [3, 1, 2, 1, 4];
  b.wanted = lengths[0]!;
  b.onData = () => {
    b.wanted = lengths[b.bytes.length] ?? 1;
  };
  left.send(Buffer.from('abc'));
  left.send(Buffer.from('D'), [fd, fd]);
  left.send(Buffer.from('ef'));
  left.send(Buffer.from('G'), [fd]);
  left.send(Buffer.from('hijk'));
  await until(() => b.text.length === 11);
  t.same(b.bytes.map(String), ['abc', 'D', 'ef', 'G', 'hijk']);
  t.same(b.counts, [0, 2, 0, 1, 0]);
  left.endSending();
  await until(() => b.isEnded);
  right.send(Buffer.from('still'));
  await until(() => a.text === 'still');
  right.endSending();
  await until(() => a.isEnded);
  t.same([a.error, b.error], [undefined, undefined]);
  left.close();
  right.close();
  right.close();
  fd.close();
  t.equal(openFds(), before, 'fds that were not taken are closed');
});

t.test('any pieces, however slowly they are taken', async () => {
  const before = openFds();
  const pieces = fc.array(fc.tuple(fc.integer({ min: 1, max: 60_000 }), fc.nat(2)), { maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(pieces, fc.integer({ min: 1, max: 5000 }), async (pieces, wanted) => {
      const { b, left, right } = pair();
      b.wanted = wanted;
      const fd = eventfd();
      const sent = pieces.map(([length], index) => Buffer.alloc(length, index + 1));
      for (const [index, [, fds]] of pieces.entries()) left.send(sent[index]!, Array(fds).fill(fd));
      fd.close();
      await left.drained();
      left.endSending();
      await until(() => b.isEnded);
      left.close();
      right.close();
      const fds = pieces.reduce((sum, [, count]) => sum + count, 0);
      const same = Buffer.concat(b.bytes).equals(Buffer.concat(sent));
      return same && b.counts.reduce((sum, count) => sum + count, 0) === fds;
    }),
    { numRuns: 60 },
  );
  t.equal(openFds(), before);
});

t.test('a peer that is gone, one that does not read, a handler that throws', async (t) => {
  const before = openFds();
  const gone = pair();
  gone.right.close();
  gone.left.send(Buffer.from('x'));
  await until(() => gone.a.error !== undefined);
  t.match(gone.a.error, { code: 'DEVSTATE_E_CONNECTION_CLOSED' });
  t.ok(gone.left.isClosed);
  gone.left.send(Buffer.from('x'));
  await t.rejects(gone.left.drained(), { code: 'DEVSTATE_E_CONNECTION_CLOSED' });

  const [fd, mute] = socketPair();
  const full = new Recorder();
  const socket = new StreamSocket(fd, full, LIMIT);
  const event = eventfd();
  socket.send(Buffer.alloc(1 << 20), [event]);
  const waiting = socket.drained();
  socket.send(Buffer.alloc(1 << 20), [event]);
  await t.rejects(waiting, { code: 'DEVSTATE_E_SEND_QUEUE_FULL' });
  await until(() => full.error !== undefined);
  event.close();
  mute.close();

  const thrown = pair();
  thrown.b.onData = () => {
    throw new RangeError('no');
  };
  thrown.left.send(Buffer.from('x'));
  await until(() => thrown.b.error !== undefined);
  t.match(thrown.b.error, RangeError);
  await until(() => thrown.a.isEnded);
  thrown.left.close();

  const closing = pair();
  closing.b.onData = () => closing.right.close();
  closing.left.send(Buffer.from('x'));
  await until(() => closing.a.isEnded);
  t.equal(closing.b.error, undefined, 'the side that closes gets no error');
  closing.left.close();
  t.equal(openFds(), before);
});

t.test('taken fds stay open', async (t) => {
  const { b, left, right } = pair();
  const kept: Fd[] = [];
  b.onData = (fds) => kept.push(...fds.map((fd) => fd.take()));
  const fd = eventfd();
  left.send(Buffer.from('x'), [fd]);
  await until(() => kept.length === 1);
  native.eventfdSignal(fd.number);
  t.equal(native.eventfdRead(kept[0]!.number), 1);
  for (const one of [fd, ...kept, left, right]) one.close();
});
