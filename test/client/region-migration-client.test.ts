// SPDX-License-Identifier: Apache-2.0
/** Our client of migration v1 with a server of another make: what it writes, what it takes, and what it does not. */

import t from 'tap';
import { RegionMigrationClient } from '../../src/client/index.js';
import { checkObject, native, Protection } from '../../src/native/index.js';
import { openDeviceSocket, type ProtocolChoice } from '../../src/operations/device-socket.js';
import { askPeer, planState } from '../../src/operations/state-plan.js';
import { createTransfer } from '../../src/operations/state-transfer.js';
import {
  DeviceState,
  deviceStateName,
  Errno,
  MigrationFlag,
  MigrationState,
  migrationStateName,
  RequestError,
} from '../../src/wire/index.js';
import { ForeignDevice, type ForeignOptions } from '../support/foreign-region.js';
import { memfd } from '../support/memory.js';
import { outcome, Served, serveScratch, type Test } from '../support/served.js';

const { STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY, RUNNING_P2P, ERROR } = MigrationState;

async function meet(t: Test, options: ForeignOptions & { map?: boolean } = {}) {
  const device = new ForeignDevice(options);
  const served = new Served(t, device);
  return { device, served, client: await served.region(served.path, options) };
}

/** A foreign device with parts of its region in memory that can be mapped. */
async function meetMapped(t: Test, areas: { offset: number; size: number }[], map = true) {
  const [dataOffset, dataSize] = [4096, 16384];
  const length = dataOffset + dataSize;
  const fd = memfd(length + 4096);
  // Not at the begin of the file, so that offsets count.
  const mapping = checkObject(native.map(fd.number, 4096, length, Protection.readWrite), 'map');
  const bytes = new Uint8Array(checkObject(mapping.window(0, length), 'see'));
  t.teardown(() => {
    mapping.unmap();
    fd.close();
  });
  const memory = { fd, offset: 4096, areas };
  return { ...(await meet(t, { dataOffset, dataSize, memory, bytes, map })), fd };
}

const chunk = (length: number, first: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (first + i * 7) & 0xff);

async function readAll(client: RegionMigrationClient, room = client.maxChunk): Promise<Uint8Array[]> {
  const chunks: Uint8Array[] = [];
  const target = new Uint8Array(room);
  for (let size = await client.readData(target); size > 0; size = await client.readData(target))
    chunks.push(target.slice(0, size));
  return chunks;
}

t.test('the region is found by its type, wherever it is', async (t) => {
  for (const index of [9, 10, 40]) {
    const { client } = await meet(t, { index });
    t.equal(await client.state(), RUNNING);
    t.equal(await client.flags(), MigrationFlag.STOP_COPY | MigrationFlag.PRE_COPY, 'no P2P');
    t.equal(await client.dataSize(), undefined);
  }
  const noPci = await meet(t, { index: 2, flags: 0 });
  t.equal(await noPci.client.state(), RUNNING);
  const none = serveScratch(t);
  t.equal(await RegionMigrationClient.open(await none.vmm()), undefined);
});

t.test('what it writes to get from one state to another, reserved bits as they were', async (t) => {
  const table: [from: MigrationState, to: MigrationState, written: number[]][] = [
    [RUNNING, STOP, [0]],
    [RUNNING, STOP_COPY, [2]],
    [RUNNING, PRE_COPY, [3]],
    [RUNNING, RESUMING, [4]],
    [RUNNING, RUNNING, []],
    [RUNNING, RUNNING_P2P, []],
    [STOP, RUNNING, [1]],
    [STOP, RESUMING, [1, 4]],
    [STOP, PRE_COPY, [1, 3]],
    [STOP_COPY, STOP, [0]],
    [STOP_COPY, RUNNING, [1]],
    [STOP_COPY, PRE_COPY, [1, 3]],
    [PRE_COPY, STOP_COPY, [2]],
    [PRE_COPY, RUNNING, [1]],
    [PRE_COPY, STOP, [1, 0]],
    [RESUMING, RUNNING, [1]],
    [RESUMING, STOP, [1, 0]],
    [RESUMING, STOP_COPY, [1, 2]],
  ];
  const reserved = 0xa0000018;
  for (const [from, to, written] of table) {
    const { device, client } = await meet(t, { reserved });
    await client.setState(from);
    device.written = [];
    await client.setState(to);
    t.strictSame(
      device.written,
      written.map((state) => (state | reserved) >>> 0),
      `${migrationStateName(from)} → ${migrationStateName(to)}`,
    );
    client.close();
  }
  const { device, client } = await meet(t);
  device.state = DeviceState.ERROR;
  t.equal(await client.state(), ERROR);
  for (const to of [STOP, RUNNING, RESUMING]) t.equal(await outcome(client.setState(to)), Errno.EINVAL);
  t.equal(await outcome(client.setState(ERROR)), 0, 'there already');
  await client.reset();
  t.equal(await client.state(), RUNNING);
  t.equal(await outcome(client.setState(ERROR)), Errno.EINVAL);
  device.state = 5;
  t.equal(await outcome(client.state()), 'DEVSTATE_E_PROTOCOL', deviceStateName(5));
});

t.test('a write that fails: the state is read again', async (t) => {
  const { device, client } = await meet(t);
  device.hook = () => {
    throw new RequestError(Errno.ENOSPC, 'no');
  };
  const stays = await client.setState(STOP_COPY).catch((error) => error);
  t.equal(stays.errno, Errno.ENOSPC);
  t.notMatch(stays.message, /ERROR/);
  device.hook = () => {
    device.state = DeviceState.ERROR;
    throw new RequestError(Errno.EIO, 'no');
  };
  const broken = await client.setState(STOP_COPY).catch((error) => error);
  t.equal(broken.errno, Errno.EIO);
  t.match(broken.message, /has to be reset/);
});

t.test('chunks as they come, whatever pending_bytes says of them', async (t) => {
  const { device, client } = await meet(t);
  const chunks = [chunk(4096, 1), chunk(1, 2), chunk(333, 3)];
  await client.setState(PRE_COPY);
  t.strictSame(await readAll(client), [], 'nothing yet');
  device.chunks = chunks.slice(0, 1);
  t.strictSame(await readAll(client), chunks.slice(0, 1));
  device.chunks = chunks.slice(1);
  device.pending = (left) => (left === 0 ? 0 : 2 ** 40 - left * 1000);
  await client.setState(STOP_COPY);
  t.strictSame(await readAll(client), chunks.slice(1));
  t.strictSame(await readAll(client), [], 'the end stays the end');

  await client.setState(RUNNING);
  device.chunks = chunks.slice();
  await client.setState(STOP_COPY);
  t.equal(
    Buffer.concat(await readAll(client, 100)).compare(Buffer.concat(chunks)),
    0,
    'into too little room',
  );

  await client.setState(RUNNING);
  device.chunks = [chunk(10, 1), new Uint8Array(0), chunk(10, 2)];
  await client.setState(STOP_COPY);
  t.strictSame(await readAll(client), [chunk(10, 1)], 'a chunk of nothing is the end, as QEMU has it');
});

t.test('a chunk half read is given up with its saving', async (t) => {
  const { device, client } = await meet(t);
  device.chunks = [chunk(100, 1)];
  await client.setState(STOP_COPY);
  await client.readData(new Uint8Array(10));
  await client.setState(RUNNING);
  device.chunks = [chunk(50, 9)];
  await client.setState(STOP_COPY);
  t.strictSame(await readAll(client), [chunk(50, 9)]);
});

t.test('a place of the data that cannot be', async (t) => {
  for (const wrong of [
    { offset: 0 },
    { offset: 24 },
    { offset: 4097 },
    { size: 4097 },
    { size: 2 ** 52 },
    { offset: 2 ** 52 },
  ]) {
    const { device, client } = await meet(t);
    device.chunks = [chunk(100, 1)];
    device.wrong = wrong;
    await client.setState(STOP_COPY);
    t.equal(
      await outcome(client.readData(new Uint8Array(100))),
      'DEVSTATE_E_PROTOCOL',
      JSON.stringify(wrong),
    );
  }
  const { device, client } = await meet(t);
  await client.setState(RESUMING);
  for (const offset of [0, 8, 64 + 4096, 2 ** 40]) {
    device.wrong = { offset };
    t.equal(
      await outcome(client.writeData(chunk(1, 1))),
      'DEVSTATE_E_PROTOCOL',
      `to be written to ${offset}`,
    );
  }
});

t.test('mapped, in part, or not at all: the same bytes', async (t) => {
  const cases: [string, { offset: number; size: number }[], map: boolean, accesses: number][] = [
    ['all of it', [{ offset: 4096, size: 16384 }], true, 0],
    ['not wanted', [{ offset: 4096, size: 16384 }], false, 2],
    ['the middle', [{ offset: 8192, size: 4096 }], true, 4],
    [
      'two parts',
      [
        { offset: 12288, size: 8192 },
        { offset: 4096, size: 4096 },
      ],
      true,
      2,
    ],
    [
      'nothing that is inside',
      [
        { offset: 8192, size: 2 ** 31 },
        { offset: 4096, size: 0 },
      ],
      true,
      2,
    ],
  ];
  for (const [what, areas, map, accesses] of cases) {
    const { device, client } = await meetMapped(t, areas, map);
    t.equal(client.isMapped, map && areas[0]!.size < 2 ** 31, what);
    device.chunks = [chunk(16384, 5)];
    await client.setState(STOP_COPY);
    t.strictSame(await readAll(client), [chunk(16384, 5)]);
    await client.setState(RUNNING);
    await client.setState(RESUMING);
    await client.writeData(chunk(16384, 11));
    t.strictSame(device.loaded, [chunk(16384, 11)]);
    t.equal(device.accesses, accesses, `${what}: accesses by messages`);
  }
});

t.test('a server that takes the memory away', async (t) => {
  const { device, client, fd } = await meetMapped(t, [{ offset: 4096, size: 16384 }]);
  device.chunks = [chunk(16384, 5)];
  await client.setState(STOP_COPY);
  t.equal(await client.readData(new Uint8Array(1)), 1);
  native.truncate(fd.number, 0);
  t.equal(await outcome(client.readData(new Uint8Array(16384))), 'DEVSTATE_E_PROTOCOL');
});

t.test('what does not fit is divided, unless it must not be', async (t) => {
  const { device, client } = await meet(t, { dataSize: 100 });
  await client.setState(RESUMING);
  await client.writeData(chunk(250, 1));
  t.strictSame(
    device.loaded.map(({ length }) => length),
    [100, 100, 50],
  );
  t.equal(Buffer.concat(device.loaded).compare(chunk(250, 1)), 0);
  device.loaded = [];
  t.equal(await outcome(client.writeData(chunk(101, 1), { whole: true })), 'DEVSTATE_E_INCOMPATIBLE');
  t.strictSame(device.loaded, [], 'nothing of it');
  await client.writeData(chunk(100, 1), { whole: true });
  t.strictSame(device.loaded, [chunk(100, 1)]);
});

t.test(
  'from one device of another make to its like: in the same transactions, whatever their size',
  async (t) => {
    const move = async (size: number, room: number) => {
      const [from, to] = [await meet(t, { dataSize: size }), await meet(t, { dataSize: room })];
      const chunks = [chunk(size, 1), chunk(3, 2), chunk(size - 1, 3)];
      from.device.chunks = chunks.slice(0, 2);
      const { plan, reasons } = planState(await askPeer(from.client), await askPeer(to.client));
      t.strictSame(reasons, []);
      const transfer = createTransfer(plan, from.client, to.client);
      await to.client.setState(RESUMING);
      await from.client.setState(PRE_COPY);
      const moved = async (): Promise<void> => {
        await transfer.round();
        from.device.chunks.push(chunks[2]!);
        await from.client.setState(STOP_COPY);
        await transfer.finish();
      };
      return { result: await outcome(moved()), chunks, loaded: to.device.loaded };
    };
    for (const [size, room] of [
      [16, 16],
      [4096, 8192],
      [3 * 2 ** 20, 3 * 2 ** 20],
    ] as const) {
      const { result, chunks, loaded } = await move(size, room);
      t.equal(result, 0);
      t.same(
        loaded.map(({ length }) => length),
        chunks.map(({ length }) => length),
      );
      t.equal(Buffer.concat(loaded).compare(Buffer.concat(chunks)), 0);
    }
    t.equal((await move(4096, 2048)).result, 'DEVSTATE_E_INCOMPATIBLE', 'to one with less room');
  },
);

t.test('which protocol a device is spoken to by', async (t) => {
  const foreign = new Served(t, new ForeignDevice());
  const [v1, v2, both] = [
    serveScratch(t, { migration: 'v1' }),
    serveScratch(t, { migration: 'v2' }),
    serveScratch(t, { migration: 'both' }),
  ];
  const asked = async (path: string, protocol: ProtocolChoice) => {
    try {
      const { device } = await openDeviceSocket(path, { protocol });
      device.close();
      return device.protocol;
    } catch (error) {
      return (error as { code: string }).code;
    }
  };
  const NONE = 'DEVSTATE_E_NOT_MIGRATABLE';
  const refused = await openDeviceSocket(v1.migrationPath, { protocol: 'v2' }).catch((error) => error);
  t.match(refused.message, /has migration v1 only/, 'it says what there is');
  for (const [what, path, auto, one, two] of [
    ['v1', v1.migrationPath, 'v1', 'v1', NONE],
    ['v2', v2.migrationPath, 'v2', NONE, 'v2'],
    ['both', both.migrationPath, 'v2', 'v1', 'v2'],
    ['v1 of another make', foreign.path, 'v1', 'v1', NONE],
  ] as const) {
    t.equal(await asked(path, 'auto'), auto, `${what}, auto`);
    t.equal(await asked(path, 'v1'), one, `${what}, v1`);
    t.equal(await asked(path, 'v2'), two, `${what}, v2`);
  }
});
