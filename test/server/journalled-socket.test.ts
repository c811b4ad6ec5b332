// SPDX-License-Identifier: Apache-2.0
/** A connection with a crash journal, over a real socket: where one socket stops, its successor continues. */

import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { DevstateError } from '../../src/errors.js';
import { FdHolder } from '../../src/fd-store/index.js';
import { check, native } from '../../src/native/index.js';
import { CrashJournal } from '../../src/server/crash-journal.js';
import { JournalledSocket, MAX_ATTEMPTS } from '../../src/server/journalled-socket.js';
import { Fd, type Frame, socketPair } from '../../src/transport/index.js';
import { encodeHeader, HEADER_LENGTH, HeaderFlag, type RequestError } from '../../src/wire/index.js';

/** A message with a payload that says its number. */
function message(id: number, payload = 8, claimed = HEADER_LENGTH + payload): Uint8Array {
  const bytes = new Uint8Array(HEADER_LENGTH + payload).fill(id & 0xff);
  encodeHeader(new DataView(bytes.buffer), 0, id, 3, claimed, HeaderFlag.TYPE_COMMAND);
  return bytes;
}

/** What happens to a socket, in order. */
interface Seen {
  readonly messages: { bytes: string; fds: number[] }[];
  readonly refused: RequestError[];
  readonly closed: (DevstateError | undefined)[];
}

class Rig {
  readonly holder: FdHolder;
  readonly client: Fd;
  readonly #server: Fd;
  readonly #path: string;
  readonly #capacity: number;
  readonly #made: { socket: JournalledSocket; crash: CrashJournal }[] = [];

  constructor(t: Test, capacity = 20) {
    const directory = mkdtempSync('/tmp/devstate-journalled-');
    this.#path = join(directory, 'notify');
    this.#capacity = capacity;
    this.holder = new FdHolder(this.#path, 100, () => {});
    [this.client, this.#server] = socketPair();
    t.teardown(() => {
      for (const { socket, crash } of this.#made) {
        socket.close();
        crash.close();
      }
      for (const fd of [this.client, this.#server]) fd.close();
      this.holder.close();
      rmSync(directory, { recursive: true });
    });
  }

  /** A process of the server; the one before is gone, as far as its socket is concerned. */
  next(handle: (socket: JournalledSocket, frame: Frame) => void) {
    const goesOn = this.#made.length > 0;
    this.#made.at(-1)?.socket.close();
    this.holder.drain();
    const fds = this.holder.kept.map(({ name, fd }) => ({ name, fd: fd.duplicate() }));
    const crash = CrashJournal.open({
      environment: { notifySocket: this.#path, capacity: this.#capacity, fds },
      slots: [],
    });
    const seen: Seen = { messages: [], refused: [], closed: [] };
    const socket: JournalledSocket = new JournalledSocket(
      this.#server.duplicate(),
      crash,
      {
        message: (frame) => {
          const bytes = Buffer.from(frame.bytes.subarray(0, frame.length)).toString('hex');
          seen.messages.push({ bytes, fds: frame.fds.map(({ number }) => number) });
          handle(socket, frame);
        },
        refused: (_frame, error) => {
          seen.refused.push(error);
          socket.unanswered();
        },
        closed: (error) => seen.closed.push(error),
      },
      goesOn,
    );
    this.#made.push({ socket, crash });
    if (goesOn) socket.resume();
    return { socket, crash, seen };
  }

  send(bytes: Uint8Array, fds: readonly Fd[] = []): void {
    const numbers = Int32Array.from(fds, ({ number }) => number);
    const sent = native.sendMessage(this.client.number, bytes, 0, bytes.length, numbers, fds.length);
    check(sent, 'send');
  }

  /** What has been sent to the client until nothing more is there. */
  received(): Buffer {
    const parts: Buffer[] = [];
    for (;;) {
      const bytes = new Uint8Array(1 << 20);
      const got = native.receiveMessage(this.client.number, bytes, 0, bytes.length, new Int32Array(8));
      if (got <= 0) return Buffer.concat(parts);
      parts.push(Buffer.from(bytes.subarray(0, got)));
    }
  }
}

/** Until what was sent has been looked at: pollers are served between two turns of the loop. */
async function turns(count = 3): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const answer = (socket: JournalledSocket): void => void socket.send(Uint8Array.of(9, 9));

t.test('a message in pieces, each received by another process', async (t) => {
  const rig = new Rig(t);
  const whole = message(1, 40);
  let last = rig.next(answer);
  for (const [from, to] of [
    [0, 7],
    [7, 16],
    [16, 30],
    [30, 56],
  ] as const) {
    rig.send(whole.subarray(from, to));
    await turns();
    if (to < whole.length) {
      t.same(last.seen.messages, []);
      last = rig.next(answer);
    }
  }
  t.same(last.seen.messages, [{ bytes: hex(whole), fds: [] }]);
  t.equal(hex(rig.received()), '0909');
  const after = rig.next(answer);
  await turns();
  t.same(after.seen.messages, [], 'it is done with');
});

t.test(
  'many messages, answered and not: none is lost, none comes twice, however often the process changes',
  async (t) => {
    const rig = new Rig(t);
    const seen: string[] = [];
    const handle = (socket: JournalledSocket, frame: Frame): void => {
      seen.push(hex(frame.bytes.subarray(0, frame.length)));
      if (seen.length % 3 === 0) socket.send([Uint8Array.of(7), Uint8Array.of(8)]);
      else socket.unanswered();
    };
    const sent: string[] = [];
    rig.next(handle);
    for (let id = 1; id <= 700; id++) {
      const bytes = message(id, id % 50);
      sent.push(hex(bytes));
      rig.send(bytes);
      if (id % 97 === 0) rig.next(handle);
      await turns(1);
    }
    await turns();
    t.same(seen, sent);
    t.equal(rig.received().length, 2 * Math.floor(700 / 3));
  },
);

t.test('what was not answered is carried out again, three times; then it is refused', async (t) => {
  const rig = new Rig(t);
  const leave = (socket: JournalledSocket): void => socket.close();
  let process = rig.next(leave);
  rig.send(message(5));
  await turns();
  for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt++) {
    t.equal(process.seen.messages.length, 1, `attempt ${attempt}`);
    process = rig.next(leave);
    await turns();
  }
  t.same(process.seen.messages, []);
  t.match(process.seen.refused, [{ errno: 5 }]);
  rig.send(message(6));
  await turns();
  t.equal(process.seen.messages.length, 1, 'the next is an ordinary one');
});

t.test('a reply that the peer reads slowly, sent by several processes', async (t) => {
  const rig = new Rig(t);
  const reply = new Uint8Array(1 << 20).map((_, at) => at * 7);
  rig.next((socket) => void socket.send(reply));
  rig.send(message(1));
  await turns();
  const parts: Buffer[] = [rig.received()];
  t.ok(parts[0]!.length > 0 && parts[0]!.length < reply.length, 'it did not fit at once');
  let answers = 0;
  for (let i = 0; i < 50 && parts.reduce((sum, { length }) => sum + length, 0) < reply.length; i++) {
    rig.next(() => answers++);
    await turns();
    parts.push(rig.received());
  }
  t.equal(Buffer.compare(Buffer.concat(parts), reply), 0, `in ${parts.length} parts`);
  t.equal(answers, 0, 'carried out once');
});

t.test('fds: kept before the message is taken, given again with it, and released afterwards', async (t) => {
  const rig = new Rig(t);
  const eventfds = [1, 2].map((value) => new Fd(check(native.eventfdCreate(value), 'make an eventfd')));
  t.teardown(() => {
    for (const fd of eventfds) fd.close();
  });
  const names = (): string[] => {
    rig.holder.drain();
    return rig.holder.kept.map(({ name }) => name);
  };
  rig.next(() => {});
  rig.send(message(1), [eventfds[0]!, eventfds[1]!, eventfds[0]!]);
  await turns();
  t.same(names(), ['journal', 'fd-1', 'fd-2'], 'the same open file once');
  const values: number[] = [];
  const { seen, crash } = rig.next((socket, { fds }) => {
    for (const fd of fds) values.push(native.eventfdRead(fd.number));
    socket.unanswered();
  });
  await turns();
  t.equal(seen.messages[0]?.fds.length, 3);
  t.same(values.slice(0, 2), [1, 2]);
  t.ok(values[2]! < 0, 'it was the first, which has been read');
  t.equal(crash.store.size, 0);
  t.same(names(), ['journal']);
});

t.test('more fds than the supervisor keeps: the message is refused, the connection continues', async (t) => {
  const rig = new Rig(t, 2);
  const { seen } = rig.next(answer);
  const fds = [1, 2].map((value) => new Fd(check(native.eventfdCreate(value), 'make an eventfd')));
  rig.send(message(1), fds);
  rig.send(message(2));
  await turns();
  for (const fd of fds) fd.close();
  t.match(seen.refused, [{ errno: 28 }]);
  t.equal(seen.messages.length, 1);
  t.same(seen.closed, []);
});

t.test('an answer that takes its time', async (t) => {
  const rig = new Rig(t);
  let later = (): void => {};
  const { seen } = rig.next((socket) => {
    later = () => answer(socket);
  });
  rig.send(message(1));
  rig.send(message(2));
  await turns();
  t.equal(seen.messages.length, 1, 'the next waits');
  later();
  await turns();
  t.equal(seen.messages.length, 2);
  t.equal(hex(rig.received()), '0909');
});

t.test('a peer that breaks the rules, and one that leaves', async (t) => {
  const eventfd = new Fd(check(native.eventfdCreate(0), 'make an eventfd'));
  t.teardown(() => eventfd.close());
  for (const [what, act, code] of [
    ['too short', (rig: Rig) => rig.send(message(1, 0, 15)), 'DEVSTATE_E_MESSAGE_LENGTH'],
    ['too long', (rig: Rig) => rig.send(message(1, 0, 2 ** 31)), 'DEVSTATE_E_MESSAGE_LENGTH'],
    [
      'too long, header in pieces',
      async (rig: Rig) => {
        rig.send(message(1, 0, 2 ** 31).subarray(0, 5));
        await turns();
        rig.send(message(1, 0, 2 ** 31).subarray(5));
      },
      'DEVSTATE_E_MESSAGE_LENGTH',
    ],
    [
      'fds behind the header',
      async (rig: Rig) => {
        rig.send(message(1).subarray(0, 20));
        await turns();
        rig.send(message(1).subarray(20), [eventfd]);
      },
      'DEVSTATE_E_MESSAGE_FDS',
    ],
    [
      'too many fds',
      (rig: Rig) =>
        rig.send(
          message(1),
          Array.from({ length: 17 }, () => eventfd),
        ),
      'DEVSTATE_E_MESSAGE_FDS',
    ],
    [
      'leaves within a message',
      (rig: Rig) => {
        rig.send(message(1).subarray(0, 20));
        rig.client.close();
      },
      'DEVSTATE_E_MESSAGE_TRUNCATED',
    ],
    ['leaves', (rig: Rig) => rig.client.close(), undefined],
  ] as const) {
    const rig = new Rig(t);
    const { socket, seen } = rig.next(answer);
    await act(rig);
    await turns();
    t.ok(socket.isClosed, what);
    t.same(seen.messages, [], what);
    t.same(
      seen.closed.map((error) => error?.code),
      [code],
      what,
    );
    t.equal(rig.holder.kept.filter(({ name }) => name !== 'journal').length, 0);
  }
});
