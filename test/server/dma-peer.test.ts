// SPDX-License-Identifier: Apache-2.0
/** DMA by messages with the clients that there are: as specified, QEMU as it is, and QEMU as it first was. */

import fc from 'fast-check';
import t, { type Test } from 'tap';
import { MessageDmaPeer, proposedTerms } from '../../src/server/dma-peer.js';
import { type Frame, MessageSocket, socketPair } from '../../src/transport/index.js';
import {
  Command,
  commandName,
  defaultCapabilities,
  Errno,
  encodeReplyHeader,
  HEADER_LENGTH,
  messageCommand,
  messageId,
  readU64,
  vfioUserFraming,
} from '../../src/wire/index.js';
import { outcome } from '../support/served.js';

const LIMITS = { maxMessageLength: 65536, maxFds: 0, maxQueuedBytes: 1 << 20 };
const MEMORY_LENGTH = 65536;
const MAX_TRANSFER = 4096;

/** The memory behind a client, and how it answers. */
interface Client {
  /** The answer's payload, or an errno. */
  answer(command: number, request: DataView, memory: Uint8Array): Uint8Array | number;
}

/** The specification's layout: address u64, count u64, data. */
const specified: Client = {
  answer(command, request, memory) {
    const address = readU64(request, 0);
    const count = readU64(request, 8);
    const head = bytesOf(request).slice(0, 16);
    if (command === Command.DMA_READ) return Buffer.concat([head, memory.subarray(address, address + count)]);
    if (request.byteLength !== 16 + count) return Errno.EINVAL;
    memory.set(bytesOf(request).subarray(16), address);
    return head;
  },
};

/**
 * QEMU 10.1's `VFIOUserDMARW`: a C struct of header, u64, u32 and a flexible array, which begins at 28 although the struct
 * has a size of 32.
 */
const firstQemu: Client = {
  answer(command, request, memory) {
    if (request.byteLength < 16) return Errno.EINVAL;
    const address = readU64(request, 0);
    const count = request.getUint32(8, true);
    if (command === Command.DMA_READ) {
      const reply = new Uint8Array(16 + count);
      reply.set(bytesOf(request).subarray(0, 12));
      reply.set(memory.subarray(address, address + count), 12);
      return reply;
    }
    if (count > request.byteLength - 16) return Errno.E2BIG;
    memory.set(bytesOf(request).subarray(12, 12 + count), address);
    return new Uint8Array(0);
  },
};

function bytesOf(view: DataView): Uint8Array {
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

/** A peer with a client at the other end of its socket. */
function connect(t: Test, client: Client, { likeQemu = true } = {}) {
  const [ours, theirs] = socketPair();
  const memory = new Uint8Array(MEMORY_LENGTH);
  /** Command and count of every message. */
  const seen: [name: string, count: number][] = [];
  const capabilities = {
    ...defaultCapabilities,
    maxDataXferSize: MAX_TRANSFER,
    ...(likeQemu ? { migrationPageSize: 4096 } : {}),
  };
  const socket = new MessageSocket(ours, vfioUserFraming, LIMITS, {
    message: (frame) => void t.ok(peer.reply(frame)),
    closed: () => peer.close(),
  });
  const peer = new MessageDmaPeer(socket, proposedTerms({ major: 0, minor: likeQemu ? 0 : 2, capabilities }));
  const far = new MessageSocket(theirs, vfioUserFraming, LIMITS, {
    message: (frame: Frame) => {
      const command = messageCommand(frame.view);
      const start = frame.bytes.byteOffset + HEADER_LENGTH;
      const request = new DataView(frame.bytes.buffer, start, frame.length - HEADER_LENGTH);
      seen.push([commandName(command), request.getUint32(8, true)]);
      const answer = client.answer(command, request, memory);
      const payload = typeof answer === 'number' ? new Uint8Array(0) : answer;
      const header = new Uint8Array(HEADER_LENGTH);
      const error = typeof answer === 'number' ? answer : 0;
      encodeReplyHeader(
        new DataView(header.buffer),
        0,
        messageId(frame.view),
        command,
        payload.length,
        error,
      );
      far.send([header, payload]);
    },
    closed: () => {},
  });
  t.teardown(() => {
    far.close();
    socket.close();
  });
  return { peer, memory, seen, far };
}

for (const [name, client, likeQemu] of [
  ['a client as specified', specified, false],
  ['QEMU', specified, true],
  ['the first QEMU', firstQemu, true],
] as const) {
  t.test(`${name}: what is written is read`, async (t) => {
    const { peer, memory } = connect(t, client, { likeQemu });
    const access = fc.record({
      address: fc.nat(MEMORY_LENGTH - 3 * MAX_TRANSFER),
      data: fc.uint8Array({ minLength: 1, maxLength: 2 * MAX_TRANSFER + 5 }),
    });
    await fc.assert(
      fc.asyncProperty(access, fc.boolean(), async ({ address, data }, readFirst) => {
        const before = memory.slice();
        const back = new Uint8Array(data.length);
        if (readFirst) {
          await peer.read(address, back);
          t.strictSame(back, before.slice(address, address + data.length));
        }
        await peer.write(address, data);
        before.set(data, address);
        t.equal(Buffer.compare(memory, before), 0, 'these bytes and no other');
        await peer.read(address, back);
        t.strictSame(back, data);
      }),
      { numRuns: 40, seed: 3 },
    );
  });
}

t.test('only who may be an old QEMU is asked, and once', async (t) => {
  const asked = connect(t, firstQemu);
  await Promise.all([asked.peer.write(0, new Uint8Array(8)), asked.peer.read(0, new Uint8Array(4))]);
  t.strictSame(asked.seen, [
    ['DMA_WRITE', 0],
    ['DMA_WRITE', 8],
    ['DMA_READ', 4],
  ]);
  const known = connect(t, specified, { likeQemu: false });
  await known.peer.write(0, new Uint8Array(8));
  t.strictSame(known.seen, [['DMA_WRITE', 8]]);
});

t.test('who refuses to write nothing is taken at the specification', async (t) => {
  const strict: Client = {
    answer: (command, request, memory) =>
      readU64(request, 8) === 0 ? Errno.EINVAL : specified.answer(command, request, memory),
  };
  const { peer, memory } = connect(t, strict);
  await peer.write(5, Uint8Array.of(1, 2, 3));
  t.strictSame(memory.slice(4, 9), Uint8Array.of(0, 1, 2, 3, 0));
});

t.test('refusals, and answers of the wrong length', async (t) => {
  const refusing = connect(t, { answer: (_, request) => (readU64(request, 8) === 0 ? 0 : Errno.EFAULT) });
  t.equal(await outcome(refusing.peer.read(0, new Uint8Array(4))), Errno.EFAULT);
  const short = connect(t, { answer: () => new Uint8Array(17) }, { likeQemu: false });
  t.equal(await outcome(short.peer.read(0, new Uint8Array(4))), Errno.EPROTO);
});

t.test('a client that goes while it is asked', async (t) => {
  const { peer, far } = connect(t, specified);
  const writing = peer.write(0, new Uint8Array(1));
  far.close();
  t.equal(await outcome(writing), Errno.ENOTCONN);
  t.equal(await outcome(peer.read(0, new Uint8Array(1))), Errno.ENOTCONN);
});
