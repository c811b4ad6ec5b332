// SPDX-License-Identifier: Apache-2.0
/** Handoffs between two ends: what arrives, what is refused, and who continues when either end fails in any phase. */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, fstatSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import {
  Channel,
  decodeDocument,
  encodeMessage,
  FIRST_VERSION,
  HANDOFF_VERSION,
  HandoffMessage,
} from '../../src/documents/index.js';
import type { DevstateError } from '../../src/errors.js';
import {
  type Adopted,
  type Bundle,
  type BundleEntry,
  encodeEntries,
  encodeTransferred,
  FdKind,
  type GiveReport,
  give,
  HANDOFF_PHASES,
  HandoffError,
  Lease,
  type ReceiveReport,
  receive,
  rehearseHandoff,
  requireKind,
} from '../../src/handoff/index.js';
import { native, Shutdown } from '../../src/native/index.js';
import { closeAll, connect, Fd, socketPair } from '../../src/transport/index.js';
import { withoutLeak } from '../support/closes.js';
import { assortment, eventfd, memory, RecordingGiver, RecordingReceiver } from './support.js';

type Outcome<T> = { report: T; error?: undefined } | { report?: undefined; error: HandoffError };

async function outcome<T>(work: Promise<T>): Promise<Outcome<T>> {
  try {
    return { report: await work };
  } catch (error) {
    if (!(error instanceof HandoffError)) throw error;
    return { error };
  }
}

/** Both ends in this process. */
async function handOver(
  giver: RecordingGiver,
  receiver: RecordingReceiver,
  timeouts = {},
): Promise<[Outcome<GiveReport>, Outcome<ReceiveReport>]> {
  const [left, right] = socketPair();
  return Promise.all([
    outcome(give(left, giver, { timeouts })),
    outcome(receive(right, receiver, { timeouts })),
  ]);
}

t.test('more fds than the receiver may have open are refused before anything stops', async (t) => {
  const { entries, close } = await assortment();
  const limit = Number(/^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'latin1'))?.[1]);
  const giver = Object.assign(new RecordingGiver(entries), { offer: { what: 'a test', fds: limit + 1 } });
  const [given, received] = await handOver(giver, new RecordingReceiver(entries));
  t.match(given.error, { phase: 'prepare', message: /this process may have \d+: raise its limit/ });
  t.match(received.error, { phase: 'prepare' });
  t.equal(giver.frozen, 0);
  close();
});

t.test('fds of every kind arrive, and the document', (t) =>
  withoutLeak(t, async () => {
    const { entries, close } = await assortment();
    const giver = new RecordingGiver(entries, { list: [1, 2, 3], text: 'ä' });
    const receiver = new RecordingReceiver(entries);
    const [given, received] = await handOver(giver, receiver);
    t.match(given.report, { fds: entries.length + 1, unconfirmed: false, pid: process.pid });
    t.equal(received.report?.generation, 1);
    for (const phase of HANDOFF_PHASES) t.type(given.report?.ms[phase], 'number', phase);
    t.same(giver.answer, { ready: true });
    t.match(receiver.offer, { what: 'a test' });
    t.same(receiver.document, { list: [1, 2, 3], text: 'ä' });
    t.match(giver, { frozen: 1, thawed: 0 });
    t.match(receiver, { started: 1, abandoned: 0 });
    for (const { name, fd } of entries) {
      const there = receiver.taken.get(name);
      t.ok(fd.isOpen, `${name}: nothing is closed for the giver`);
      t.equal(fstatSync(there!.number).ino, fstatSync(fd.number).ino, `${name}: the same file`);
    }
    receiver.close();
    close();
  }),
);

t.test('a successor is of the kind of what it replaces', async (t) => {
  const error = {
    code: 'DEVSTATE_E_HANDOFF',
    message: /is a relay, and its successor .* as a device-server/,
  };
  t.throws(() => requireKind('device-server', { what: 'relay' }), error);
  for (const offer of [{ what: 'device-server' }, {}, null, 5]) requireKind('device-server', offer);
});

t.test('a rehearsal leaves nothing behind', (t) => withoutLeak(t, rehearseHandoff));

t.test('a thousand fds go in batches', (t) =>
  withoutLeak(t, async () => {
    const entries = Array.from({ length: 1000 }, (_, index) => ({
      kind: FdKind.EVENTFD,
      name: `vector:${index}`,
      fd: eventfd(),
    }));
    const receiver = new RecordingReceiver(entries);
    const [given] = await handOver(new RecordingGiver(entries), receiver);
    t.equal(given.report?.fds, 1001);
    // Each is what its name says, not its neighbour.
    entries.forEach(({ fd }, index) => {
      if (index % 97 === 0) native.eventfdSignal(fd.number);
    });
    const signalled = entries.flatMap(({ name }, index) =>
      native.eventfdRead(receiver.taken.get(name)!.number) === 1 ? [index] : [],
    );
    t.same(signalled, [0, 97, 194, 291, 388, 485, 582, 679, 776, 873, 970]);
    receiver.close();
    closeAll(entries.map(({ fd }) => fd));
  }),
);

t.test('a bundle that is not what it should be is refused, and the giver continues', async (t) => {
  const wrong = (kind: FdKind, fd: () => Fd): BundleEntry[] => [
    { kind: FdKind.EVENTFD, name: 'right', fd: eventfd() },
    { kind, name: 'wrong', fd: fd() },
  ];
  const cases: [string, () => BundleEntry[], RegExp][] = [
    ['memory that is an eventfd', () => wrong(FdKind.MEMORY, eventfd), /wrong should be a memory/],
    ['an eventfd that is memory', () => wrong(FdKind.EVENTFD, memory), /wrong should be a eventfd/],
    ['state that is not sealed', () => wrong(FdKind.SEALED, memory), /wrong should be a sealed/],
    ['a socket that is a directory', () => wrong(FdKind.SOCKET, openRoot), /wrong should be a socket/],
    ['a listener that is connected', () => wrong(FdKind.LISTENER, halfPair), /wrong should be a listener/],
    ['a container that is none', () => wrong(FdKind.VFIO_CONTAINER, memory), /should be a vfio container/],
    ['a kind of the future', () => wrong(999 as FdKind, eventfd), /not known here \(999\)/],
    ['two of one name', () => [...wrong(FdKind.EVENTFD, eventfd), ...wrong(FdKind.EVENTFD, eventfd)], /two/],
    ['one that is not expected', () => wrong(FdKind.EVENTFD, eventfd), /nothing is known here that wrong/],
    ['a name too long', () => [{ kind: FdKind.EVENTFD, name: 'n'.repeat(256), fd: eventfd() }], /256 bytes/],
  ];
  for (const [name, make, message] of cases) {
    await t.test(name, (t) =>
      withoutLeak(t, async () => {
        const entries = make();
        const giver = new RecordingGiver(entries);
        const receiver = new RecordingReceiver(entries.slice(0, 1));
        const [given, received] = await handOver(giver, receiver);
        t.match(given.error?.message, message, 'the giver learns why');
        t.match(given.error?.message, /handoff failed in phase (transfer|adopt): .*; the giver continues/);
        t.ok(received.error !== undefined);
        t.match(giver, { frozen: 1, thawed: 1 });
        t.equal(receiver.started, 0);
        closeAll(entries.map(({ fd }) => fd));
        receiver.close();
      }),
    );
  }
  t.test('one that is missing', (t) =>
    withoutLeak(t, async () => {
      const { entries, close } = await assortment();
      const giver = new RecordingGiver(entries.slice(1));
      const [given, received] = await handOver(giver, new RecordingReceiver(entries));
      t.match(given.error, { phase: 'adopt', message: /the fd socket is missing/ });
      t.match(received.error, { phase: 'adopt', code: 'DEVSTATE_E_HANDOFF_BUNDLE' });
      t.equal(giver.thawed, 1);
      close();
    }),
  );
});

function openRoot(): Fd {
  return new Fd(openSync('/', 'r'));
}

function halfPair(): Fd {
  const [one, other] = socketPair();
  other.close();
  return one;
}

/** Sends bytes as a giver that is none; what the receiver makes of it. */
async function receiveRaw(messages: readonly { bytes: Uint8Array; fds?: readonly Fd[] }[]) {
  const [left, right] = socketPair();
  for (const { bytes, fds = [] } of messages) {
    const numbers = Int32Array.from(fds, (fd) => fd.number);
    native.sendMessage(left.number, bytes, 0, bytes.length, numbers, numbers.length);
  }
  const receiver = new RecordingReceiver([]);
  const ended = outcome(receive(right, receiver, { timeouts: { prepare: 300, transfer: 300 } }));
  if (messages.length === 0) native.shutdown(left.number, Shutdown.send);
  const result = await ended;
  left.close();
  t.equal(receiver.started, 0);
  return result.error as HandoffError;
}

t.test('garbage, and messages that lie, are refused', (t) =>
  withoutLeak(t, async () => {
    const prepareOf = (offer: unknown) => ({
      bytes: encodeMessage(HandoffMessage.PREPARE, new TextEncoder().encode(JSON.stringify(offer))),
    });
    const prepare = prepareOf({ handoff: HANDOFF_VERSION });
    const one = [{ kind: FdKind.EVENTFD, name: 'one' }];
    const fd = eventfd();
    const fds = (count: number, payload = encodeEntries(one), carried = [fd]) => ({
      bytes: encodeMessage(HandoffMessage.FDS, payload, count),
      fds: carried,
    });
    const end = (count: number) => ({
      bytes: encodeMessage(HandoffMessage.TRANSFERRED, encodeTransferred(count, null)),
    });
    const cut = encodeEntries(one).subarray(0, 6);
    const long = Uint8Array.from([...encodeEntries(one), 0, 0, 0, 0]);
    const text = new TextEncoder().encode('no JSON');
    const cases: [string, Parameters<typeof receiveRaw>[0], RegExp][] = [
      ['nothing', [], /prepare: the other process went away/],
      ['noise', [{ bytes: new Uint8Array(64).fill(7) }], /phase prepare/],
      ['an older version', [prepareOf({})], /speaks version 1 of the handoff, this one 2/],
      ['a newer version', [prepareOf({ handoff: 3 })], /speaks version 3 of the handoff, this one 2/],
      ['no JSON', [{ bytes: encodeMessage(HandoffMessage.PREPARE, text) }], /should hold JSON/],
      ['out of turn', [end(0)], /TRANSFERRED came where PREPARE should/],
      ['more fds said than carried', [prepare, fds(2)], /says 2 fds and carries 1/],
      ['fewer fds said than carried', [prepare, fds(0)], /says 0 fds and carries 1/],
      ['a list that is cut', [prepare, fds(1, cut)], /the name of an fd|cut or damaged/],
      ['a list that is too long', [prepare, fds(1, long)], /4 bytes follow the list of 1 fds/],
      ['an end that counts others', [prepare, fds(1), end(2)], /2 fds were to come, 1 have come/],
      ['no lease', [prepare, fds(1), end(1)], /the fd lease is missing/],
      ['an end that is too short', [prepare, { bytes: encodeMessage(4, new Uint8Array(3)) }], /too short/],
    ];
    for (const [name, messages, message] of cases)
      t.match((await receiveRaw(messages)).message, message, name);
    fd.close();
  }),
);

// Another version at the other end

t.test('a giver of the first version is refused in that version, and a newer one too', async (t) => {
  for (const offer of [{ what: 'device-server' }, { what: 'device-server', handoff: 3 }]) {
    await withoutLeak(t, async () => {
      const [left, right] = socketPair();
      const receiver = new RecordingReceiver([]);
      const receiving = outcome(receive(right, receiver));
      const channel = new Channel(left);
      await channel.sendDocument(HandoffMessage.PREPARE, offer, FIRST_VERSION);
      const { version, type, payload } = await channel.next();
      t.same([version, type], [FIRST_VERSION, HandoffMessage.REFUSED]);
      const theirs = 'handoff' in offer ? 3 : 1;
      const message = new RegExp(`speaks version ${theirs} of the handoff, this one 2: both have to be`);
      t.match(decodeDocument(payload, version), { code: 'DEVSTATE_E_HANDOFF_BUNDLE', message });
      t.match((await receiving).error, { phase: 'prepare', message });
      t.equal(receiver.offer, undefined, 'it was not looked at');
      channel.end();
    });
  }
});

t.test('a receiver of the first version is refused in that version, before anything stops', (t) =>
  withoutLeak(t, async () => {
    const [left, right] = socketPair();
    const giver = new RecordingGiver([]);
    const giving = outcome(give(left, giver));
    const channel = new Channel(right);
    const prepare = await channel.expect(HandoffMessage.PREPARE);
    t.match(decodeDocument(prepare.payload, prepare.version), { what: 'a test', handoff: 2 });
    t.equal(prepare.version, FIRST_VERSION, 'it can read the first message');
    await channel.sendDocument(HandoffMessage.READY, null, FIRST_VERSION);
    const { version, type, payload } = await channel.next();
    t.same([version, type], [FIRST_VERSION, HandoffMessage.ROLLBACK]);
    const message = /speaks version 1 of the handoff, this one 2: both have to be/;
    t.match(decodeDocument(payload, version), { code: 'DEVSTATE_E_HANDOFF_BUNDLE', message });
    t.match((await giving).error, { phase: 'prepare', code: 'DEVSTATE_E_HANDOFF_BUNDLE', message });
    t.match(giver, { frozen: 0, thawed: 0 });
    channel.end();
  }),
);

// Each end fails in each phase

const STEPS = ['prepare', 'adopt'] as const;

t.test('a receiver that refuses or hangs: the giver continues, and the error names the phase', async (t) => {
  for (const step of STEPS) {
    for (const way of ['refuses', 'hangs'] as const) {
      await t.test(`${way} in ${step}`, (t) =>
        withoutLeak(t, async () => {
          const { entries, close } = await assortment();
          const giver = new RecordingGiver(entries);
          const receiver = new RecordingReceiver(entries);
          let letGo: () => void = () => {};
          const held = new Promise<void>((resolve) => {
            letGo = resolve;
          });
          const adopt = receiver.adopt.bind(receiver);
          const fail = async () => {
            if (way === 'refuses') throw new Error('no, thank you');
            await held;
          };
          if (step === 'prepare') receiver.prepare = fail;
          else receiver.adopt = async (bundle: Bundle): Promise<Adopted> => fail().then(() => adopt(bundle));
          const [left, right] = socketPair();
          const receiving = outcome(receive(right, receiver));
          const timeouts = way === 'hangs' ? { [step]: 50 } : {};
          const given = await outcome(give(left, giver, { timeouts }));
          t.equal(given.error?.phase, step);
          t.match(given.error?.message, way === 'hangs' ? /not done within 50 ms/ : /no, thank you/);
          t.match(given.error?.message, /the giver continues/);
          t.match(giver, step === 'prepare' ? { frozen: 0, thawed: 0 } : { frozen: 1, thawed: 1 });
          // The one that hung continues one day, and finds that it is too late.
          letGo();
          t.ok((await receiving).error);
          t.equal(receiver.started, 0);
          t.equal(receiver.taken.size, 0);
          close();
        }),
      );
    }
  }
});

t.test('a giver that fails to freeze: it continues, and the receiver learns why', (t) =>
  withoutLeak(t, async () => {
    const giver = new RecordingGiver([]);
    giver.freeze = () => Promise.reject(new Error('busy with something'));
    const receiver = new RecordingReceiver([]);
    const [given, received] = await handOver(giver, receiver);
    t.match(given.error, { phase: 'freeze', message: /busy with something/ });
    t.match(received.error, { phase: 'transfer', message: /busy with something/ });
    t.equal(giver.thawed, 1);
  }),
);

t.test('a giver that hangs in its freeze is asked to stop', (t) =>
  withoutLeak(t, async () => {
    const giver = new RecordingGiver([]);
    let aborted: AbortSignal | undefined;
    giver.freeze = (_answer: unknown, signal?: AbortSignal) => {
      aborted = signal;
      return new Promise(() => {});
    };
    const [given] = await handOver(giver, new RecordingReceiver([]), { freeze: 50 });
    t.match(given.error, { phase: 'freeze', message: /not done within 50 ms/ });
    t.ok(aborted?.aborted);
    t.equal(giver.thawed, 1);
  }),
);

t.test('an end that goes away, message by message', async (t) => {
  for (const after of [0, 1, 2, 3]) {
    await t.test(`the giver after ${after} messages`, (t) =>
      withoutLeak(t, async () => {
        const [left, right] = socketPair();
        const receiver = new RecordingReceiver([{ kind: FdKind.EVENTFD, name: 'one' }]);
        const receiving = outcome(receive(right, receiver));
        const channel = new Channel(left);
        const lease = Lease.create();
        lease.offer();
        const fd = eventfd();
        const entries = [
          { kind: FdKind.EVENTFD, name: 'one' },
          { kind: FdKind.LEASE, name: 'lease' },
        ];
        const steps = [
          async () => {
            await channel.sendDocument(HandoffMessage.PREPARE, { handoff: HANDOFF_VERSION }, FIRST_VERSION);
            await channel.expect(HandoffMessage.READY);
          },
          () => channel.send(HandoffMessage.FDS, encodeEntries(entries), [fd, lease.fd]),
          () => channel.send(HandoffMessage.TRANSFERRED, encodeTransferred(2, null)),
        ];
        for (const step of steps.slice(0, after)) await step();
        channel.end();
        const { report, error } = await receiving;
        // Once everything is there, a receiver needs its giver no more.
        if (after === 3) t.ok(report, 'continues without its giver');
        else t.match(error, { phase: after === 0 ? 'prepare' : 'transfer' });
        t.match(receiver, { started: after === 3 ? 1 : 0, abandoned: 0 });
        t.equal(lease.isTaken, after === 3);
        receiver.close();
        fd.close();
        lease.close();
      }),
    );
  }
  for (const after of [0, 1, 2] as const) {
    const phase = (['prepare', 'adopt', 'commit'] as const)[after];
    await t.test(`the receiver after ${after} messages`, (t) =>
      withoutLeak(t, async () => {
        const { entries, close } = await assortment();
        const giver = new RecordingGiver(entries);
        const [left, right] = socketPair();
        const giving = outcome(give(left, giver));
        const channel = new Channel(right);
        await channel.expect(HandoffMessage.PREPARE);
        if (after > 0) {
          await channel.sendDocument(HandoffMessage.READY, null);
          closeAll((await channel.expect(HandoffMessage.FDS)).fds);
          await channel.expect(HandoffMessage.TRANSFERRED);
        }
        if (after > 1) await channel.sendDocument(HandoffMessage.ADOPTED, null);
        channel.end();
        t.match((await giving).error, { phase, message: /the other process went away/ });
        t.match(giver, after === 0 ? { frozen: 0, thawed: 0 } : { frozen: 1, thawed: 1 });
        close();
      }),
    );
  }
});

/** A giver that has said what it offers to a receiver that the test is. */
async function offered(giver: RecordingGiver) {
  const [left, right] = socketPair();
  const giving = outcome(give(left, giver));
  const channel = new Channel(right);
  await channel.expect(HandoffMessage.PREPARE);
  return { giving, channel };
}

t.test('a giver, which serves a device, parses no long document of a receiver', (t) =>
  withoutLeak(t, async () => {
    const giver = new RecordingGiver([]);
    const { giving, channel } = await offered(giver);
    const answer = channel.sendDocument(HandoffMessage.READY, 'x'.repeat(100_000));
    t.match((await giving).error, { phase: 'prepare' });
    t.match(giver, { frozen: 0, thawed: 0 });
    await answer.catch(() => {});
    channel.end();
  }),
);

t.test('a receiver that took the lease and says no more has taken over', (t) =>
  withoutLeak(t, async () => {
    const giver = new RecordingGiver([]);
    const { giving, channel } = await offered(giver);
    await channel.sendDocument(HandoffMessage.READY, null);
    const { fds } = await channel.expect(HandoffMessage.FDS);
    const lease = Lease.open(fds[0]!);
    await channel.expect(HandoffMessage.TRANSFERRED);
    t.ok(lease.take());
    channel.end();
    t.match((await giving).report, { unconfirmed: true, fds: 1 });
    t.equal(giver.thawed, 0, 'two would operate it otherwise');
    lease.close();
  }),
);

// Another user

t.test(
  'a process of another user is refused',
  { skip: process.getuid?.() === 0 ? false : 'only root can be two users' },
  async (t) => {
    const directory = mkdtempSync(join(tmpdir(), 'handoff-'));
    chmodSync(directory, 0o777);
    const path = join(directory, 'socket');
    const program = `require('node:net').createServer().listen(process.argv[1], () => console.log('listening'))`;
    // Without what the test runner has its processes load by their environment: it writes a file that this user may not.
    const other: ChildProcess = spawn('env', ['-i', process.execPath, '-e', program, path], {
      uid: 65534,
      cwd: '/',
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.teardown(async () => {
      other.kill();
      await once(other, 'exit');
      rmSync(directory, { recursive: true });
    });
    await once(other.stdout!, 'data');
    await withoutLeak(t, async () => {
      const giver = new RecordingGiver([]);
      const { error } = await outcome(give(await connect(path), giver));
      t.match(error, { phase: 'prepare', code: 'DEVSTATE_E_HANDOFF_PEER' });
      t.match((error as DevstateError).message, /runs as user 65534, this one as 0/);
      t.equal(giver.frozen, 0);
    });
  },
);
