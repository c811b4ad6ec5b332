// SPDX-License-Identifier: Apache-2.0
/** A peer that may connect cannot exhaust the process that holds devices: connections, fds, memory and time are bounded. */

import { once } from 'node:events';
import { connect as connectStream, type Socket } from 'node:net';
import t from 'tap';
import { encodeMessage, HandoffMessage, packDocument } from '../../src/documents/index.js';
import { encodeEntries, FdKind } from '../../src/handoff/index.js';
import { MAX_MESSAGE_FDS, native } from '../../src/native/index.js';
import { closeAll, connect, type Fd } from '../../src/transport/index.js';
import { askStatus, VfioStation } from '../../src/vfio/index.js';
import { openFds } from '../support/closes.js';
import { eventfd } from '../support/memory.js';
import { socketFolder, type Test } from '../support/served.js';

const REQUEST = encodeMessage(
  HandoffMessage.REQUEST,
  Uint8Array.from([1, 0, 0, 0, ...packDocument({ command: 'status' })]),
);

function station(test: Test, idleMs: number) {
  const path = `${socketFolder(test)}/station`;
  const log: string[] = [];
  const made = new VfioStation(path, {}, { idleMs, log: (_level, message) => log.push(message) });
  test.teardown(() => made.close());
  return { path, log };
}

const settled = async (holds: () => boolean): Promise<void> => {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
};

t.test('connections that never speak, or stop in a message, are few and end', async (t) => {
  const { path } = station(t, 300);
  const sockets: Socket[] = [];
  let open = 0;
  for (let i = 0; i < 40; i++) {
    const socket = connectStream(path);
    await once(socket, 'connect');
    open++;
    socket
      .on('close', () => open--)
      .on('error', () => {})
      .resume();
    if (i % 2 === 1) socket.write(REQUEST.subarray(0, i % 20));
    sockets.push(socket);
  }
  await settled(() => open <= 8);
  await settled(() => open === 0);
  t.equal((await askStatus(path)).lends, false, 'and it answers');
});

t.test('messages that are sent ahead stay with their sender, fds and all', async (t) => {
  const { path } = station(t, 60_000);
  const before = openFds();
  const fd = await connect(path);
  const flood = await floodWith(fd, 5000);
  t.ok(flood.sent < flood.of, `the station takes no more than it can answer: ${flood.sent} of ${flood.of}`);
  t.ok(openFds() - before < 3 * MAX_MESSAGE_FDS, `${openFds() - before} fds`);
  t.equal((await askStatus(path)).held, false, 'others are answered');
  flood.end();
});

/** Sends messages with fds, none of whose answers it reads. */
async function floodWith(socket: Fd, of: number): Promise<{ sent: number; of: number; end(): void }> {
  const fds = Array.from({ length: MAX_MESSAGE_FDS }, () => eventfd());
  const numbers = Int32Array.from(fds, ({ number }) => number);
  const labels = encodeEntries(fds.map((_, i) => ({ kind: FdKind.EVENTFD, name: `${i}` })));
  const message = encodeMessage(HandoffMessage.FDS, labels, fds.length);
  let sent = 0;
  // Refused a hundred times in a row, it is not only that the station has not come to read yet.
  for (let refused = 0; sent < of && refused < 100; ) {
    const result = native.sendMessage(socket.number, message, 0, message.length, numbers, numbers.length);
    if (result > 0) sent++;
    refused = result > 0 ? 0 : refused + 1;
    if (result <= 0) await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return {
    sent,
    of,
    end: () => {
      closeAll(fds);
      socket.close();
    },
  };
}

t.test('a reader that does not read its answers is closed', async (t) => {
  const { path } = station(t, 300);
  const slow = connectStream(path);
  await once(slow, 'connect');
  let closed = false;
  slow.on('close', () => (closed = true)).on('error', () => {});
  slow.pause();
  const pump = (): void => {
    while (!closed && slow.write(REQUEST));
    if (!closed) slow.once('drain', pump);
  };
  pump();
  for (let turns = 0; turns < 200 && !closed; turns++) {
    t.equal((await askStatus(path)).lends, false);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  t.ok(closed);
  slow.destroy();
});

t.test('before a handoff a message is short', async (t) => {
  const { path, log } = station(t, 60_000);
  const socket = connectStream(path);
  await once(socket, 'connect');
  const head = encodeMessage(HandoffMessage.REQUEST, new Uint8Array(0));
  new DataView(head.buffer).setUint32(4, 16 << 20, true);
  socket.on('error', () => {}).resume();
  socket.write(head);
  await once(socket, 'close');
  t.same(log, [], 'and a sender of another one is closed like any stranger');
});
