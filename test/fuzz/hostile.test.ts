// SPDX-License-Identifier: Apache-2.0
/**
 * Clients that send anything but what they should: garbage, cut and oversized messages, fds where none belong, and valid
 * sessions mutated at random. After each, the next honest client is served, and nothing of the hostile one remains.
 */

import fc from 'fast-check';
import t from 'tap';
import { closeAll, type Fd, socketPair } from '../../src/transport/index.js';
import { Command, Errno, FeatureFlag, MigrationState } from '../../src/wire/index.js';
import { viewOf } from '../support/hex.js';
import { eventfd, memfd } from '../support/memory.js';
import { access, dmaMap, dmaUnmap, setIrqs, u32, version } from '../support/payloads.js';
import { RawClient } from '../support/raw-client.js';
import { SCRATCH_ID } from '../support/scratch-device.js';
import { resources, type Served, serveScratch } from '../support/served.js';

const { SET, GET } = FeatureFlag;

/** Every command with a valid payload and as many fds as it takes. */
const VALID: readonly [number, Uint8Array, number][] = [
  [Command.DMA_MAP, dmaMap(0x1000, 0x1000), 1],
  [Command.DMA_MAP, dmaMap(0x8000, 0x1000), 0],
  [Command.DMA_UNMAP, dmaUnmap(0x1000, 0x1000), 0],
  [Command.DEVICE_GET_INFO, u32(16, 0, 0, 0), 0],
  [Command.DEVICE_GET_REGION_INFO, u32(64, 0, 0, 0, 0, 0, 0, 0), 0],
  [Command.DEVICE_GET_REGION_IO_FDS, u32(16, 0, 0, 0), 0],
  [Command.DEVICE_GET_IRQ_INFO, u32(16, 0, 2, 0), 0],
  [Command.DEVICE_SET_IRQS, setIrqs(0x24, 2, 0, 3), 3],
  [Command.DEVICE_SET_IRQS, setIrqs(0x22, 2, 0, 2, Uint8Array.of(1, 1)), 0],
  [Command.REGION_READ, access(0, 0, 4), 0],
  [Command.REGION_WRITE, access(0x100, 0, 4, u32(1)), 0],
  [Command.REGION_WRITE_MULTI, Buffer.concat([u32(1, 0), access(0x100, 0, 4, u32(1, 2))]), 0],
  [Command.DEVICE_FEATURE, u32(16, 1 | GET), 0],
  [Command.DEVICE_FEATURE, u32(64, 6 | SET, 4096, 0, 1, 0, 0, 0, 4096, 0), 0],
  [Command.DEVICE_FEATURE, u32(4096, 8 | GET, 0, 0, 0x100000, 0, 4096, 0), 0],
  [Command.DEVICE_FEATURE, u32(8, 7 | SET), 0],
  [Command.DEVICE_FEATURE, u32(16, 2 | SET, MigrationState.PRE_COPY, 0), 0],
  [Command.MIG_DATA_READ, u32(108, 100), 0],
  [Command.DEVICE_FEATURE, u32(16, 2 | SET, MigrationState.RESUMING, 0), 0],
  [Command.MIG_DATA_WRITE, Buffer.concat([u32(12, 4), u32(0)]), 0],
  [Command.DEVICE_RESET, new Uint8Array(0), 0],
  ...migrationV1(),
  [Command.DEVICE_RESET, new Uint8Array(0), 0],
];

/** The migration region and what goes with it, from pre-copy to a load that is refused. */
function migrationV1(): [number, Uint8Array, number][] {
  const read = (offset: number, length: number): [number, Uint8Array, number] => [
    Command.REGION_READ,
    access(offset, 9, length),
    0,
  ];
  const write = (offset: number, ...words: number[]): [number, Uint8Array, number] => [
    Command.REGION_WRITE,
    access(offset, 9, 4 * words.length, u32(...words)),
    0,
  ];
  return [
    [Command.DEVICE_GET_REGION_INFO, u32(128, 0, 9, 0, 0, 0, 0, 0), 0],
    [Command.DIRTY_PAGES, u32(8, 1), 0],
    write(0, 3),
    ...[8, 16, 24].map((register) => read(register, 8)),
    read(4096, 16),
    write(0, 2),
    read(8, 8),
    [Command.DIRTY_PAGES, u32(48, 4, 0, 0, 0x10000, 0, 4096, 0, 8, 0), 0],
    [Command.DMA_UNMAP, u32(48, 1, 0x8000, 0, 0x1000, 0, 4096, 0, 8, 0), 0],
    write(0, 1),
    write(0, 4),
    read(16, 8),
    write(4096, 1, 2, 3, 4),
    write(24, 16, 0),
    write(0, 1),
  ];
}

/** Everything that can be served. */
const BOTH = { migration: 'both', migrationRegion: { dataSize: 4096 } } as const;
const MAPPED = { migration: 'both', migrationRegion: { dataSize: 4096, mapped: true } } as const;

/** A whole session as one run of bytes: VERSION, then every command. */
function session(): Uint8Array {
  const [fd, other] = socketPair();
  const client = new RawClient(fd);
  other.close();
  const messages = [client.message(Command.VERSION, version({ writeMultiple: true }))];
  for (const [command, payload, fds] of VALID) if (fds === 0) messages.push(client.message(command, payload));
  client.close();
  return new Uint8Array(Buffer.concat(messages));
}

/** An honest client does a little of everything. */
async function requireHonest(served: Served): Promise<void> {
  const vmm = await served.vmm();
  const id = new Uint8Array(4);
  await vmm.regionRead(0, 0, id);
  if (viewOf(id).getUint32(0, true) !== SCRATCH_ID) throw new Error('the device is not what it was');
  await vmm.dmaMap({ flags: 3, offset: 0, address: 0x1000, size: 0x1000 });
  vmm.close();
}

/** Sends `bytes` on a fresh connection and nothing more; settles when the server has looked at all of it and hung up. */
async function attack(path: string, bytes: Uint8Array, fds: readonly Fd[] = []): Promise<void> {
  const client = await RawClient.connect(path);
  client.send(bytes, fds);
  client.finish();
  await client.closed();
}

t.test('garbage', async (t) => {
  const served = serveScratch(t, BOTH);
  const wrong: [string, Uint8Array][] = [
    ['text', Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')],
    ['zeros', new Uint8Array(4096)],
    ['ones', new Uint8Array(4096).fill(0xff)],
    ['a size of 15', u32(0x10001, 15, 0, 0)],
    ['a size of 2^32 - 1', u32(0x10001, 0xffffffff, 0, 0)],
    ['one byte more than is taken', u32(0x10001, 2 ** 20 + 4097, 0, 0)],
  ];
  for (const [what, bytes] of wrong) {
    for (const path of [served.path, served.migrationPath]) {
      const client = await served.raw(path);
      client.send(bytes);
      await client.closed();
    }
    await requireHonest(served);
    t.pass(what);
  }
  t.match(served.log.join('\n'), /DEVSTATE_E_MESSAGE_LENGTH/, 'the log says so');
});

t.test('cut at every byte', async (t) => {
  const served = serveScratch(t, MAPPED);
  const bytes = session();
  await requireHonest(served);
  const before = resources();
  for (let length = 1; length < bytes.length; length += length < 200 ? 1 : 7) {
    await attack(served.path, bytes.subarray(0, length));
  }
  await requireHonest(served);
  await attack(served.path, new Uint8Array(0));
  await requireHonest(served);
  const after = resources();
  t.ok(after.fds <= before.fds + 2, `nothing is left: ${before.fds} fds before, ${after.fds} after`);
  t.equal(after.maps, before.maps);
});

t.test('fds: too few, too many, where none belong', async (t) => {
  const served = serveScratch(t, BOTH);
  const fds = Array.from({ length: 17 }, (_, i) => (i % 2 === 0 ? memfd(0x1000) : eventfd()));
  t.teardown(() => closeAll(fds));
  const client = await served.raw();
  await client.version({ writeMultiple: true });
  const before = resources();
  for (const [command, payload] of VALID) {
    for (const count of [0, 1, 2, 3, 16]) {
      const reply = await client.call(command, payload, { fds: fds.slice(0, count) });
      if (reply.command !== command) t.fail('answered out of turn');
      if (command === Command.DMA_MAP && count > 1)
        t.equal(reply.error, Errno.EINVAL, `DMA_MAP with ${count} fds`);
      if (command === Command.DMA_MAP) await client.call(Command.DMA_UNMAP, dmaUnmap(0, 0, 2));
    }
  }
  await client.call(Command.DEVICE_SET_IRQS, setIrqs(0x21, 2, 0, 0));
  t.strictSame(resources(), before, 'each was closed');
  client.send(client.message(Command.DEVICE_GET_INFO, u32(16, 0, 0, 0)), fds);
  await client.closed();
  t.pass('seventeen end the connection');
  await requireHonest(served);

  const late = await served.raw();
  await late.version();
  const message = late.message(Command.DMA_MAP, dmaMap(0, 0x1000));
  late.send(message.subarray(0, 16));
  await new Promise(setImmediate);
  late.send(message.subarray(16), fds.slice(0, 1));
  await late.closed();
  t.pass('fds behind the header end it');
  await requireHonest(served);
});

t.test('more than the server keeps for one client', async (t) => {
  const served = serveScratch(t, BOTH);
  let finish = (): void => {};
  served.scratch.hook = (step) =>
    step === 'slow' ? new Promise<void>((resolve) => (finish = resolve)) : undefined;
  const client = await served.raw();
  await client.version();
  client.send(client.message(Command.REGION_READ, access(0x20, 0, 4)));
  const flood = Buffer.concat(
    Array.from({ length: 5000 }, () => client.message(Command.REGION_READ, access(0, 0, 4))),
  );
  client.send(flood);
  await client.closed();
  finish();
  await requireHonest(served);
  t.pass('the connection ends, the server does not');
});

t.test('a client that does not read', async (t) => {
  const served = serveScratch(t, { stateSize: 2 ** 20 });
  const writer = await served.raw();
  await writer.version();
  writer.pause();
  const read = writer.message(Command.REGION_READ, access(0, 2, 2 ** 20));
  writer.send(Buffer.concat(Array.from({ length: 100 }, () => read)));
  while (!served.log.some((line) => line.includes('DEVSTATE_E_SEND_QUEUE_FULL')))
    await new Promise(setImmediate);
  writer.close();
  await requireHonest(served);
  t.pass('is given up at a bound');
});

/** One change to a run of bytes. */
type Mutation = { at: number; kind: number; value: number };

function mutate(bytes: Uint8Array, mutations: readonly Mutation[]): Uint8Array {
  let list = [...bytes];
  for (const { at, kind, value } of mutations) {
    const position = at % list.length;
    if (kind === 0) list[position] = value & 0xff;
    else if (kind === 1) list[position] = list[position]! ^ (1 << (value & 7));
    else if (kind === 2) list.splice(position, (value & 31) + 1);
    else if (kind === 3) list.splice(position, 0, ...list.slice(position, position + (value & 63)));
    else if (kind === 4) list.splice(position & ~3, 4, ...u32(value));
    else list = [...list.slice(0, position), ...list.slice(0, (value & 255) + 16)];
    if (list.length === 0) list = [0];
  }
  return Uint8Array.from(list);
}

t.test('5000 mutations of valid sessions', async (t) => {
  const served = serveScratch(t, MAPPED);
  const bytes = session();
  const fds = [memfd(0x1000), eventfd()];
  t.teardown(() => closeAll(fds));
  const value = fc.oneof(
    fc.nat(255),
    fc.constantFrom(0x7fffffff, 0x80000000, 0xffffffff, 0x100000),
    fc.nat(0xffffffff),
  );
  const mutation = fc.record({ at: fc.nat(bytes.length), kind: fc.nat(5), value });
  await requireHonest(served);
  await new Promise(setImmediate);
  const before = resources();
  let runs = 0;
  await fc.assert(
    fc.asyncProperty(
      fc.array(mutation, { minLength: 1, maxLength: 6 }),
      fc.boolean(),
      fc.nat(2),
      async (mutations, manager, count) => {
        // The first message stays whole mostly, so that what follows is looked at.
        const head = mutations[0]!.at % 5 === 0 ? 0 : 16 + version({ writeMultiple: true }).length;
        const changed = Buffer.concat([bytes.subarray(0, head), mutate(bytes.subarray(head), mutations)]);
        await attack(manager ? served.migrationPath : served.path, changed, fds.slice(0, count));
        if (++runs % 50 === 0) await requireHonest(served);
      },
    ),
    { numRuns: 5000, seed: 20, endOnFailure: true },
  );
  await requireHonest(served);
  await requireHonest(served);
  t.ok(runs >= 5000);
  const after = resources();
  t.ok(after.fds <= before.fds + 2, `${before.fds} fds before, ${after.fds} after`);
  t.equal(after.maps, before.maps);
  t.notOk(
    served.log.some((line) => /TypeError|RangeError|DEVSTATE_E_INTERNAL/.test(line)),
    'only refusals, no bugs',
  );
});
