// SPDX-License-Identifier: Apache-2.0
/** The migration region over a socket: what a client learns of it, who has it, and that it is a client's own. */

import t from 'tap';
import { RegionMigrationClient } from '../../src/client/index.js';
import { native, Protection } from '../../src/native/index.js';
import { DeviceRuntime, type MigrationProtocols, type RuntimeOptions } from '../../src/runtime/index.js';
import {
  Command,
  DeviceState,
  Errno,
  Feature,
  MigrationState,
  RegionInfoFlag,
} from '../../src/wire/index.js';
import { viewOf } from '../support/hex.js';
import { access, u32 } from '../support/payloads.js';
import { scratchBlob } from '../support/scratch-blob.js';
import { ScratchDevice } from '../support/scratch-device.js';
import { outcome, serveScratch } from '../support/served.js';

const { STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY, RUNNING_P2P, ERROR } = MigrationState;
const { READ, WRITE, MMAP, CAPS } = RegionInfoFlag;
const TYPE = { type: 3, subtype: 1 };
/** The data section when nothing else is said, and a page in front of it. */
const DEFAULT_SIZE = 2 ** 20 + 4096;

t.test('what is served by which protocol, at both sockets', async (t) => {
  const table: [MigrationProtocols | undefined, v1: boolean, v2: boolean][] = [
    [undefined, false, true],
    ['v2', false, true],
    ['v1', true, false],
    ['both', true, true],
  ];
  for (const [migration, v1, v2] of table) {
    const served = serveScratch(t, migration === undefined ? {} : { migration });
    for (const role of ['vmm', 'manager'] as const) {
      const client = role === 'vmm' ? await served.vmm() : (await served.manager()).client;
      const what = `${migration ?? 'default'} for a ${role}`;
      t.equal((await client.deviceInfo()).regions, v1 ? 10 : 9, `${what}: regions`);
      t.equal((await RegionMigrationClient.open(client)) !== undefined, v1, `${what}: v1`);
      const raw = await served.raw(role === 'vmm' ? served.path : served.migrationPath);
      // The VMM's place is taken, so a second one asks through the first.
      if (role === 'vmm') client.close();
      await raw.version();
      for (const feature of [1, 2, 6, 7, 8, 9]) {
        const probe = await raw.call(Command.DEVICE_FEATURE, u32(8, 0x40000 | feature));
        t.equal(probe.error, v2 ? 0 : Errno.ENOTTY, `${what}: feature ${feature}`);
      }
      const data = await raw.call(Command.MIG_DATA_READ, u32(16, 8));
      t.equal(data.error, v2 ? Errno.EINVAL : Errno.ENOTTY, `${what}: MIG_DATA_READ`);
      const write = await raw.call(Command.MIG_DATA_WRITE, u32(8, 0));
      t.equal(write.error, v2 ? Errno.EINVAL : Errno.ENOTTY);
      if (role === 'manager') {
        const formats = await raw.call(Command.DEVICE_FEATURE, u32(8, 0x40000 | Feature.DEVSTATE_FORMATS));
        t.equal(formats.error, 0, 'formats are negotiated for either');
      }
      raw.close();
      client.close();
    }
  }
});

t.test('what a client learns of it', async (t) => {
  const trapped = await serveScratch(t, { migration: 'v1' }).vmm();
  t.match(await trapped.regionInfo(9), {
    index: 9,
    flags: READ | WRITE | CAPS,
    size: DEFAULT_SIZE,
    type: TYPE,
  });
  t.equal((await trapped.regionInfo(9)).fd, undefined);

  const served = serveScratch(t, {
    migration: 'v1',
    migrationRegion: { mapped: true, dataSize: 8192, index: 12 },
  });
  const mapped = await served.vmm();
  t.equal((await mapped.deviceInfo()).regions, 13);
  t.match(await mapped.regionInfo(10), { flags: 0, size: 0 }, 'what lies between is not there');
  const { fd, ...info } = await mapped.regionInfo(12);
  t.match(info, {
    flags: READ | WRITE | MMAP | CAPS,
    size: 12288,
    offset: 0,
    type: TYPE,
    sparseAreas: [{ offset: 4096, size: 8192 }],
  });
  t.not(native.truncate(fd!.number, 0), 0, 'the client cannot take it away');
  t.not(native.truncate(fd!.number, 2 ** 30), 0);
  fd!.close();

  const raw = await served.raw(served.migrationPath);
  await raw.version();
  raw.keepFds = true;
  const small = await raw.call(Command.DEVICE_GET_REGION_INFO, u32(32, 0, 12, 0, 0, 0, 0, 0));
  t.equal(small.payload.length, 32);
  t.equal(small.fds.length, 0);
  const needed = viewOf(small.payload).getUint32(0, true);
  const whole = await raw.call(Command.DEVICE_GET_REGION_INFO, u32(needed, 0, 12, 0, 0, 0, 0, 0));
  t.equal(whole.fds.length, 1);
  for (const one of whole.fds) one.close();
  t.strictSame(
    whole.payload.slice(32),
    new Uint8Array([...u32(0x10002, 48, 3, 1), ...u32(0x10001, 0, 1, 0, 4096, 0, 8192, 0)]),
    'TYPE, then SPARSE_MMAP, as the servers of v1 had them',
  );
});

t.test('a manager has this region and no other', async (t) => {
  const served = serveScratch(t, { migration: 'both' });
  const { client } = await served.manager();
  for (let index = 0; index < 9; index++) t.match(await client.regionInfo(index), { flags: 0, size: 0 });
  t.equal(await outcome(client.regionRead(0, 0, new Uint8Array(4))), Errno.EINVAL);
  t.equal(await outcome(client.regionWrite(7, 4, new Uint8Array(2))), Errno.EINVAL);
  const state = new Uint8Array(4);
  await client.regionRead(9, 0, state);
  t.strictSame(state, Uint8Array.of(1, 0, 0, 0));
  t.equal(await outcome(client.regionRead(9, DEFAULT_SIZE - 4, new Uint8Array(8))), Errno.EINVAL);
});

t.test('one drives, by whichever protocol; the others look', async (t) => {
  const served = serveScratch(t, { migration: 'both' });
  const vmm = await served.region(served.path);
  const [one, two] = [await served.region(), await served.manager()];
  await two.setState(RUNNING_P2P);
  t.equal(await vmm.state(), RUNNING, 'P2P is not seen');
  t.equal(await outcome(vmm.setState(PRE_COPY)), Errno.EBUSY);
  t.equal(await two.state(), RUNNING_P2P, 'nor undone');
  await two.setState(RUNNING);
  await one.setState(PRE_COPY);
  t.equal(await two.state(), PRE_COPY);
  t.equal(await outcome(two.setState(STOP)), Errno.EBUSY);
  const bytes = new Uint8Array(8);
  t.equal(
    await outcome(vmm.client.regionRead(9, 8, bytes)),
    Errno.EBUSY,
    'pending_bytes would take data away',
  );
  t.equal(await outcome(vmm.setState(RUNNING)), Errno.EBUSY);
  t.equal(await one.state(), PRE_COPY);
  await one.setState(RUNNING);
  await vmm.setState(STOP_COPY);
  t.equal(await two.state(), STOP_COPY);
});

t.test('each connection has registers and data of its own', async (t) => {
  const served = serveScratch(t, { migration: 'both', migrationRegion: { mapped: true, dataSize: 4096 } });
  const [first, second] = [await served.region(), await served.region()];
  await first.setState(RESUMING);
  const offset = new Uint8Array(8);
  await first.client.regionRead(9, 16, offset);
  await first.client.regionWrite(9, 4096, Uint8Array.of(1, 2, 3));
  t.equal(
    await outcome(second.client.regionWrite(9, 4096, new Uint8Array(3))),
    Errno.EINVAL,
    'no data_offset read',
  );
  const info = await second.client.regionInfo(9);
  const mapping = native.map(info.fd!.number, 4096, 4096, Protection.readWrite);
  info.fd!.close();
  if (typeof mapping === 'number') throw new Error(`errno ${-mapping}`);
  t.equal(new Uint8Array(mapping.window(0, 4096) as ArrayBuffer)[0], 0);
  mapping.unmap();
});

t.test('several registers in one message', async (t) => {
  const served = serveScratch(t, { migration: 'v1' });
  const client = await served.vmm();
  const state = (value: number) => ({ region: 9, offset: 0, data: u32(value) });
  await client.regionWriteMulti([
    state(DeviceState.PRE_COPY),
    state(DeviceState.STOP_COPY),
    state(DeviceState.STOP),
  ]);
  t.strictSame(served.scratch.takeCalls(), ['quiesce', 'releaseExclusive'], 'one after the other');
  t.equal(await outcome(client.regionWriteMulti([state(DeviceState.RUNNING), state(7)])), Errno.EINVAL);
  const bytes = new Uint8Array(4);
  await client.regionRead(9, 0, bytes);
  t.equal(bytes[0], DeviceState.RUNNING, 'up to the one that is refused');
});

t.test('a state write that no client waits for is carried out before what follows', async (t) => {
  const served = serveScratch(t, { migration: 'v1' });
  const raw = await served.raw();
  await raw.version();
  raw.send(raw.message(Command.REGION_WRITE, access(0, 9, 4, u32(2)), { flags: 0x10 }));
  const reply = await raw.call(Command.REGION_READ, access(0, 9, 4));
  t.strictSame(reply.payload.slice(16), u32(2));
});

t.test('a load that is refused is ERROR, by whomever it is looked at, until the reset', async (t) => {
  const served = serveScratch(t, { migration: 'both' });
  const region = await served.region(served.path);
  const manager = await served.manager();
  const blob = await scratchBlob();
  blob[blob.length >> 1]! ^= 1;
  await region.setState(RESUMING);
  await outcome(region.writeData(blob));
  const failed = await region.setState(RUNNING).catch((error) => error);
  t.equal(failed.errno, Errno.EINVAL);
  t.match(failed.message, /the device is in ERROR and has to be reset/);
  t.equal(await region.state(), ERROR);
  t.equal(await manager.state(), ERROR);
  const pending = new Uint8Array(8);
  t.equal(await outcome(region.client.regionRead(9, 8, pending)), Errno.EIO);
  t.equal(await outcome(region.setState(RUNNING)), Errno.EINVAL);
  await region.client.reset();
  t.equal(await region.state(), RUNNING);
});

t.test('what cannot be served is said at once', async (t) => {
  const made = async (options: Omit<RuntimeOptions, 'name'>) =>
    new DeviceRuntime(new ScratchDevice(), { ...options, name: 'scratch' });
  const wrong: [string, Omit<RuntimeOptions, 'name'>][] = [
    ['a PCI region', { migration: 'v1', migrationRegion: { index: 8 } }],
    ['beyond what QEMU takes', { migration: 'v1', migrationRegion: { index: 100 } }],
    ['no data', { migration: 'both', migrationRegion: { dataSize: 0 } }],
    ['half a page to map', { migration: 'v1', migrationRegion: { dataSize: 2048, mapped: true } }],
    ['too much', { migration: 'v1', migrationRegion: { dataSize: 2 ** 31 } }],
    ['values', { migration: 'v1', formats: [] }],
  ];
  for (const [what, options] of wrong) t.equal(await outcome(made(options)), 'DEVSTATE_E_USAGE', what);
  t.equal(await outcome(made({ migration: 'v2', migrationRegion: { index: 3 } })), 0, 'of no concern');
});
