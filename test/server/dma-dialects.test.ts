// SPDX-License-Identifier: Apache-2.0
/** DMA by messages with the two layouts that clients have: as specified, and as QEMU first had it. */

import t from 'tap';
import { Command, Errno, HeaderFlag } from '../../src/wire/index.js';
import { viewOf } from '../support/hex.js';
import { access, dmaMap, u32 } from '../support/payloads.js';
import type { RawClient, RawMessage } from '../support/raw-client.js';
import { Register } from '../support/scratch-device.js';
import { serveScratch } from '../support/served.js';

const REPLY = HeaderFlag.TYPE_REPLY;
const ADDRESS = 0x1234;

/** Answers the next command of the server with `answer`; returns what it was. */
async function serve(client: RawClient, answer: (request: RawMessage) => Uint8Array): Promise<RawMessage> {
  const request = await client.receive();
  if (request === undefined) throw new Error('the server closed the connection');
  client.send(client.message(request.command, answer(request), { id: request.id, flags: REPLY }));
  return request;
}

/** Has the device transfer `length` bytes; the reply to the command comes when the test has served it. */
async function start(client: RawClient, command: number, length: number): Promise<void> {
  await client.call(Command.REGION_WRITE, access(Register.DMA_ADDRESS, 0, 12, u32(ADDRESS, 0, length)));
  client.send(client.message(Command.REGION_WRITE, access(Register.DMA_COMMAND, 0, 4, u32(command))));
}

async function memory(client: RawClient, length: number): Promise<Uint8Array> {
  return (await client.call(Command.REGION_READ, access(0, 2, length))).payload.slice(16);
}

t.test('as specified: a count of 64 bits', async (t) => {
  const served = serveScratch(t);
  const client = await served.raw();
  await client.version();
  await client.call(Command.DMA_MAP, dmaMap(0x1000, 0x1000));
  await start(client, 1, 4);
  // Data that begin with zeros, and so look like the upper half of a count.
  const read = await serve(client, ({ payload }) => Buffer.concat([payload, Uint8Array.of(0, 0, 0, 9)]));
  t.strictSame(Buffer.from(read.payload), Buffer.from(u32(ADDRESS, 0, 4, 0)));
  t.equal((await client.receive())?.error, 0);
  t.strictSame(await memory(client, 4), Uint8Array.of(0, 0, 0, 9));
  await start(client, 2, 4);
  const write = await serve(client, ({ payload }) => payload.slice(0, 16));
  t.strictSame(Buffer.from(write.payload), Buffer.from(Uint8Array.of(...u32(ADDRESS, 0, 4, 0), 0, 0, 0, 9)));
  t.equal((await client.receive())?.error, 0);
});

t.test(
  "QEMU's first: a count of 32 bits, data at 12, padding behind, a header for an answer to a write",
  async (t) => {
    const served = serveScratch(t);
    const client = await served.raw();
    await client.version({ migrationPageSize: 4096 }, 0);
    await client.call(Command.DMA_MAP, dmaMap(0x1000, 0x1000));
    await start(client, 1, 4);
    const probe = await serve(client, () => new Uint8Array(0));
    t.equal(probe.command, Command.DMA_WRITE, 'asked which it is, by a write');
    t.equal(viewOf(probe.payload).getUint32(8, true), 0, 'of nothing');
    const read = await serve(client, () => Uint8Array.of(...u32(ADDRESS, 0, 4), 1, 2, 3, 4, 0, 0, 0, 0));
    t.equal(read.command, Command.DMA_READ);
    t.strictSame(Buffer.from(read.payload.slice(0, 12)), Buffer.from(u32(ADDRESS, 0, 4)));
    t.equal((await client.receive())?.error, 0);
    t.strictSame(await memory(client, 4), Uint8Array.of(1, 2, 3, 4));
    await start(client, 2, 4);
    const write = await serve(client, () => new Uint8Array(0));
    t.strictSame(write.payload.slice(0, 16), Uint8Array.of(...u32(ADDRESS, 0, 4), 1, 2, 3, 4));
    t.equal((await client.receive())?.error, 0);
  },
);

t.test('a QEMU that is as specified', async (t) => {
  const served = serveScratch(t);
  const client = await served.raw();
  await client.version({ migrationPageSize: 4096 }, 0);
  await client.call(Command.DMA_MAP, dmaMap(0x1000, 0x1000));
  await start(client, 1, 4);
  await serve(client, ({ payload }) => payload.slice(0, 16));
  await serve(client, ({ payload }) => Buffer.concat([payload, Uint8Array.of(4, 3, 2, 1)]));
  t.equal((await client.receive())?.error, 0);
  t.strictSame(await memory(client, 4), Uint8Array.of(4, 3, 2, 1));
});

t.test('answers that are none', async (t) => {
  const served = serveScratch(t);
  const client = await served.raw();
  await client.version();
  await client.call(Command.DMA_MAP, dmaMap(0x1000, 0x1000));
  const wrong: ((request: RawMessage) => Uint8Array)[] = [
    () => new Uint8Array(0),
    ({ payload }) => payload,
    ({ payload }) => Buffer.concat([payload, new Uint8Array(3)]),
    ({ payload }) => Buffer.concat([payload, new Uint8Array(5)]),
  ];
  for (const answer of wrong) {
    await start(client, 1, 4);
    await serve(client, answer);
    t.equal((await client.receive())?.error, Errno.EPROTO);
  }
  for (const [error, expected] of [
    [Errno.EFAULT, Errno.EFAULT],
    [0, Errno.EINVAL],
  ]) {
    await start(client, 1, 4);
    const request = await client.receive();
    const flags = REPLY | HeaderFlag.ERROR;
    client.send(
      client.message(Command.DMA_READ, new Uint8Array(0), { id: request!.id, flags, error: error! }),
    );
    t.equal((await client.receive())?.error, expected);
  }
  await start(client, 1, 4);
  const request = await client.receive();
  client.send(client.message(Command.DMA_WRITE, request!.payload, { id: request!.id, flags: REPLY }));
  await client.closed();
  t.pass('an answer to another command ends the connection');
});
