// SPDX-License-Identifier: Apache-2.0
/** The client against a server that answers wrongly, late, or not at all. */

import { join } from 'node:path';
import t from 'tap';
import { Client, MigrationClient } from '../../src/client/index.js';
import { type Fd, Listener, MessageSocket } from '../../src/transport/index.js';
import {
  type Capabilities,
  Command,
  Errno,
  encodeHeader,
  HeaderFlag,
  messageCommand,
  messageFlags,
  messageId,
  vfioUserFraming,
} from '../../src/wire/index.js';
import { memfd } from '../support/memory.js';
import { u32, version } from '../support/payloads.js';
import { outcome, resources, socketFolder, type Test } from '../support/served.js';

interface Answer {
  payload?: Uint8Array;
  error?: number;
  flags?: number;
  fds?: readonly Fd[];
}

/** What a command is answered with: undefined for nothing (to VERSION: as ours does), null for nothing even to VERSION. */
type Script = (command: number, payload: Uint8Array) => Answer | undefined | null;

const LIMITS = { maxMessageLength: 64 * 2 ** 20, maxFds: 16, maxQueuedBytes: 2 ** 30 };

/** A server that answers VERSION like ours, and everything else as the script says. */
function scripted(t: Test, script: Script, capabilities: Partial<Capabilities> = {}) {
  const path = join(socketFolder(t), 'socket');
  const sockets: MessageSocket[] = [];
  const commands: { command: number; flags: number; payload: Uint8Array }[] = [];
  const listener = Listener.listen(path, (fd) => {
    const socket: MessageSocket = new MessageSocket(fd, vfioUserFraming, LIMITS, {
      message: (frame) => {
        const command = messageCommand(frame.view);
        const payload = frame.bytes.slice(16, frame.length);
        commands.push({ command, flags: messageFlags(frame.view), payload });
        const scriptedAnswer = script(command, payload);
        const answer =
          command === Command.VERSION && scriptedAnswer === undefined
            ? { payload: version(capabilities) }
            : scriptedAnswer;
        if (answer === undefined || answer === null) return;
        const data = answer.payload ?? new Uint8Array(0);
        const bytes = new Uint8Array(16 + data.length);
        const flags = answer.flags ?? (answer.error === undefined ? 1 : 0x21);
        encodeHeader(
          new DataView(bytes.buffer),
          0,
          messageId(frame.view),
          command,
          bytes.length,
          flags,
          answer.error,
        );
        bytes.set(data, 16);
        socket.send(bytes, { fds: answer.fds ?? [] });
      },
      closed: () => {},
    });
    sockets.push(socket);
  });
  t.teardown(() => {
    listener.close();
    for (const socket of sockets) socket.close();
  });
  return { path, commands, sockets };
}

async function connected(
  t: Test,
  script: Script,
  options: { capabilities?: Partial<Capabilities>; timeoutMs?: number } = {},
) {
  const server = scripted(t, script, options.capabilities);
  const client = await Client.connect(
    server.path,
    options.timeoutMs === undefined ? {} : { timeoutMs: options.timeoutMs },
  );
  t.teardown(() => client.close());
  return { ...server, client, migration: new MigrationClient(client) };
}

t.test('servers that one cannot agree with', async (t) => {
  const answers: [string, Answer, number | string][] = [
    ['refused', { error: Errno.EINVAL }, Errno.EINVAL],
    ['refused without a reason', { error: 0 }, Errno.EINVAL],
    ['another major version', { payload: Uint8Array.of(1, 0, 0, 0) }, 'DEVSTATE_E_PROTOCOL'],
    ['a later minor version', { payload: Uint8Array.of(0, 0, 3, 0) }, 'DEVSTATE_E_PROTOCOL'],
    ['no version', { payload: new Uint8Array(0) }, 'DEVSTATE_E_PROTOCOL'],
    ['no JSON', { payload: Uint8Array.of(0, 0, 2, 0, 0x7b, 0) }, 'DEVSTATE_E_PROTOCOL'],
    ['transfers of nothing', { payload: version({ maxDataXferSize: 0 }) }, 'DEVSTATE_E_PROTOCOL'],
    [
      'a twin socket and no fd',
      { payload: version({ twinSocket: true, twinSocketFdIndex: 0 }) },
      'DEVSTATE_E_PROTOCOL',
    ],
    ['a twin socket and no index', { payload: version({ twinSocket: true }) }, 'DEVSTATE_E_PROTOCOL'],
  ];
  for (const [what, answer, expected] of answers) {
    const { path } = scripted(t, () => answer);
    t.equal(await outcome(Client.connect(path)), expected, what);
  }
  const { path } = scripted(t, () => null);
  const client = Client.connect(path, { timeoutMs: 20 });
  t.equal(await outcome(client), 'DEVSTATE_E_CONNECT', 'silence');
  t.equal(await outcome(Client.connect(join(socketFolder(t), 'none'))), 'DEVSTATE_E_CONNECT');
});

t.test('answers of the wrong shape', async (t) => {
  let answer: Answer = {};
  const { migration, client } = await connected(t, (command) =>
    command === Command.VERSION ? undefined : answer,
  );
  const feature = (...data: number[]): Answer => ({ payload: u32(64, 0, ...data) });
  const cases: [string, Answer, () => Promise<unknown>][] = [
    ['deviceInfo', {}, () => client.deviceInfo()],
    ['regionInfo', { payload: u32(32, 0, 0) }, () => client.regionInfo(0)],
    [
      'regionInfo, a chain to nowhere',
      { payload: u32(32, 8, 0, 99, 0, 0, 0, 0) },
      () => client.regionInfo(0),
    ],
    [
      'regionInfo, a size beyond 2^53',
      { payload: u32(32, 0, 0, 0, 0, 0xffffffff, 0, 0) },
      () => client.regionInfo(0),
    ],
    ['regionIoFds', { payload: u32(16, 0, 0, 5) }, () => client.regionIoFds(0)],
    ['irqInfo', { payload: u32(1) }, () => client.irqInfo(0)],
    ['regionRead, too short', { payload: u32(0, 0, 0, 4) }, () => client.regionRead(0, 0, new Uint8Array(4))],
    [
      'regionRead, too long',
      { payload: u32(0, 0, 0, 4, 1, 2) },
      () => client.regionRead(0, 0, new Uint8Array(4)),
    ],
    ['flags', { payload: u32(8) }, () => migration.flags()],
    ['flags, no data', feature(), () => migration.flags()],
    ['flags beyond 2^53', feature(0, 0xffffffff), () => migration.flags()],
    ['state', feature(1), () => migration.state()],
    ['dataSize', feature(1), () => migration.dataSize()],
    ['readData, no size', { payload: u32(8) }, () => migration.readData(new Uint8Array(8))],
    [
      'readData, more than asked for',
      { payload: u32(24, 16, 0, 0, 0, 0) },
      () => migration.readData(new Uint8Array(8)),
    ],
    ['readData, more than there is', { payload: u32(16, 8, 0) }, () => migration.readData(new Uint8Array(8))],
    ['startLogging', feature(1), () => migration.startLogging({ pageSize: 4096, ranges: [] })],
    [
      'reportLogging',
      feature(1, 2, 3, 4, 5, 6),
      () => migration.reportLogging({ iova: 0, length: 4096, pageSize: 4096 }),
    ],
    ['description', feature(1), () => migration.description()],
    ['dmaMaps beyond 2^53', feature(0, 0xffffffff, 0, 0, 0, 0), () => migration.dmaMaps()],
    ['readMemory', { payload: u32(0, 0, 8, 0) }, () => migration.readMemory(0, new Uint8Array(8))],
  ];
  for (const [what, wrong, work] of cases) {
    answer = wrong;
    t.equal(await outcome(work()), 'DEVSTATE_E_PROTOCOL', what);
  }
  answer = { payload: u32(64, 0, 7, 0) };
  t.equal(await migration.flags(), 7, 'the connection is as good as before');
  answer = { error: Errno.ENOTTY };
  t.equal(await migration.description(), undefined, 'a server that is not one of ours');
  t.equal(await migration.dataSize(), undefined);
  answer = { error: Errno.EPERM };
  t.equal(await outcome(migration.description()), Errno.EPERM);
});

t.test('data padded by the server', async (t) => {
  const { migration } = await connected(t, (command) =>
    command === Command.VERSION
      ? undefined
      : { payload: Uint8Array.of(...u32(108, 2), 7, 8, ...new Uint8Array(98)) },
  );
  const target = new Uint8Array(100);
  t.equal(await migration.readData(target), 2, 'only the size counts');
  t.strictSame(target.slice(0, 3), Uint8Array.of(7, 8, 0));
});

t.test('long accesses are cut to what the server takes', async (t) => {
  const { client, commands } = await connected(
    t,
    (command, payload) => {
      if (command === Command.VERSION) return undefined;
      const count = new DataView(payload.buffer).getUint32(12, true);
      if (command === Command.REGION_WRITE) return { payload: payload.slice(0, 16) };
      return { payload: Buffer.concat([payload, Buffer.alloc(count, payload[0])]) };
    },
    { capabilities: { maxDataXferSize: 4 } },
  );
  const target = new Uint8Array(10);
  await client.regionRead(0, 0x10, target);
  t.strictSame([...target], [0x10, 0x10, 0x10, 0x10, 0x14, 0x14, 0x14, 0x14, 0x18, 0x18]);
  await client.regionWrite(0, 0, new Uint8Array(10));
  t.strictSame(
    commands.slice(4).map(({ payload }) => payload.length - 16),
    [4, 4, 2],
  );
});

t.test('eventfds go in as many messages as the server takes', async (t) => {
  const fd = memfd(1);
  t.teardown(() => fd.close());
  const { client, commands } = await connected(
    t,
    (command) => (command === Command.VERSION ? undefined : {}),
    {
      capabilities: { maxMsgFds: 2 },
    },
  );
  await client.assignEventfds(2, [fd, fd, fd, fd, fd]);
  t.strictSame(
    commands.slice(1).map(({ payload }) => [payload[12], payload[16]]),
    [
      [0, 2],
      [2, 2],
      [4, 1],
    ],
  );
});

t.test('no reply asked for, none awaited', async (t) => {
  const { client, commands } = await connected(t, (command, payload) =>
    command === Command.DEVICE_GET_INFO ? { payload } : undefined,
  );
  await client.regionWrite(0, 0, new Uint8Array(4), { noReply: true });
  await client.dmaMap({ flags: 3, offset: 0, address: 0, size: 4096 }, undefined, { noReply: true });
  await client.dmaUnmap({ flags: 2, address: 0, size: 0 }, { noReply: true });
  await client.regionWriteMulti([], { noReply: true });
  await client.setIrqs({ flags: 0x21, index: 0, start: 0, count: 0 }, { noReply: true });
  await client.deviceInfo();
  const flags = commands.slice(1, 6).map((command) => command.flags & HeaderFlag.NO_REPLY);
  t.strictSame(flags, new Array(5).fill(HeaderFlag.NO_REPLY));
});

t.test('a server that goes away', async (t) => {
  const { client, sockets } = await connected(t, () => undefined);
  const waiting = [client.reset(), client.deviceInfo()];
  const closed = client.closed();
  setImmediate(() => sockets[0]!.close());
  for (const work of waiting) t.equal(await outcome(work), 'DEVSTATE_E_CONNECTION_CLOSED');
  await closed;
  await client.closed();
  t.equal(client.isClosed, true);
  t.equal(await outcome(client.reset()), 'DEVSTATE_E_CONNECTION_CLOSED', 'and for ever');
});

t.test('a server that does not answer in time', async (t) => {
  // Long enough for the negotiation, whose answer has to arrive in the same time.
  const { client } = await connected(t, () => undefined, { timeoutMs: 2000 });
  t.equal(await outcome(client.reset()), 'DEVSTATE_E_REQUEST_TIMEOUT');
});

t.test('an fd that is closed already', async (t) => {
  const { client } = await connected(t, (command) => (command === Command.VERSION ? undefined : {}));
  const fd = memfd(4096);
  fd.close();
  t.equal(
    await outcome(client.dmaMap({ flags: 3, offset: 0, address: 0, size: 4096 }, fd)),
    'DEVSTATE_E_FD_CLOSED',
  );
  await client.reset();
});

t.test('commands from the server', async (t) => {
  const server = scripted(t, () => undefined);
  const served: string[] = [];
  const client = await Client.connect(server.path, {
    dma: {
      read: (address, target) => {
        served.push(`read ${address}+${target.length}`);
        target.fill(9);
      },
      write: (address, source) => {
        served.push(`write ${address}+${source.length}`);
        if (address === 13) throw new Error('unlucky');
      },
    },
  });
  t.teardown(() => client.close());
  const send = (command: number, payload: Uint8Array, flags = 0): void => {
    const bytes = new Uint8Array(16 + payload.length);
    encodeHeader(new DataView(bytes.buffer), 0, 5, command, bytes.length, flags);
    bytes.set(payload, 16);
    server.sockets[0]!.send(bytes);
  };
  const answered = async (count: number): Promise<void> => {
    while (server.commands.length < 1 + count) await new Promise(setImmediate);
  };
  send(Command.DMA_READ, u32(1, 0, 4, 0));
  send(Command.DMA_WRITE, Buffer.concat([u32(2, 0, 3, 0), Buffer.of(1, 2, 3)]));
  send(Command.DMA_READ, u32(3, 0, 4, 0), HeaderFlag.NO_REPLY);
  send(Command.DMA_WRITE, Buffer.concat([u32(4, 0, 9, 0), Buffer.of(1)]));
  send(Command.DMA_WRITE, Buffer.concat([u32(13, 0, 1, 0), Buffer.of(1)]));
  send(Command.DMA_READ, u32(5, 0, 2 ** 20 + 1, 0));
  send(Command.DMA_READ, u32(5, 0));
  send(Command.DEVICE_RESET, new Uint8Array(0));
  await answered(7);
  t.strictSame(served, ['read 1+4', 'write 2+3', 'read 3+4', 'write 13+1']);
  const ERROR = HeaderFlag.TYPE_REPLY | HeaderFlag.ERROR;
  t.strictSame(
    server.commands.slice(1).map(({ command, flags, payload }) => [command, flags, payload.length]),
    [
      [11, 1, 20],
      [12, 1, 16],
      [12, ERROR, 0],
      [12, ERROR, 0],
      [11, ERROR, 0],
      [11, ERROR, 0],
      [13, ERROR, 0],
    ],
  );
});

t.test('fds that come along are closed', async (t) => {
  const fd = memfd(4096);
  const { client } = await connected(t, (command) =>
    command === Command.VERSION ? undefined : { payload: u32(16, 0, 0, 0), fds: [fd, fd, fd] },
  );
  await client.deviceInfo();
  const before = resources();
  for (let i = 0; i < 100; i++) await client.deviceInfo();
  t.strictSame(resources(), before);
  fd.close();
});
