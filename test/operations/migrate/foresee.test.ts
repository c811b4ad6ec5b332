// SPDX-License-Identifier: Apache-2.0
/** What `check` says of the pause: measured at a real server whose guest has the device write, and which is left as it was. */

import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import { GuestMachine, NvmeDriver } from '../../../src/guest-driver/index.js';
import { type CheckDevicesOptions, checkDevices } from '../../../src/operations/index.js';
import { Command, Errno, MigrationState } from '../../../src/wire/index.js';
import { untilKilled } from '../../fault/dying-manager.js';
import { RelayBed } from '../../relay/support.js';
import { memfd } from '../../support/memory.js';
import { dmaMap } from '../../support/payloads.js';
import { outcome, resources, type Served, serveScratch, type Test, until } from '../../support/served.js';
import { serveNvme } from '../nvme-servers.js';

const MIB = 2 ** 20;
const PART = 64 * 1024;
/** Bytes of the guest's memory that the device writes in turn: it is through after a quarter of a second at the earliest. */
const PARTS = 250;
const FIRST_PAGE = { iova: 2 ** 32, length: 4096, pageSize: 4096 };

/** A disk, and a guest that has its driver. */
async function guest(t: Test, options: { shareMemory?: boolean } = {}) {
  const server = serveNvme(t);
  const machine = await GuestMachine.start(server.path, options);
  t.teardown(() => machine.close());
  const driver = await NvmeDriver.start(machine);
  t.teardown(() => driver.detach());
  return { server, machine, driver };
}

/** Reads the disk into one part of memory after the other. @returns what ends that */
function readOn(driver: NvmeDriver): () => Promise<void> {
  const parts = Array.from({ length: PARTS }, () => driver.allocate(PART));
  let ended = false;
  const work = (async () => {
    for (let turn = 0; !ended; turn++) {
      await driver.read(0, parts[turn % PARTS]!);
      await delay(1);
    }
  })();
  return () => {
    ended = true;
    return work;
  };
}

/** A server, or a relay. */
type End = Pick<Served, 'migrationPath' | 'manager'>;

const optionsOf = (source: End, dest: End, downtimeMs = 300): CheckDevicesOptions => ({
  source: source.migrationPath,
  dest: dest.migrationPath,
  downtimeMs,
});
const check = (source: End, dest: End, downtimeMs?: number) =>
  checkDevices(optionsOf(source, dest, downtimeMs));

/** EBUSY while somebody has the log, EINVAL when it is off: a report is refused either way. */
async function logOf(server: End): Promise<number | string> {
  const manager = await server.manager();
  try {
    return await outcome(manager.reportLogging(FIRST_PAGE));
  } finally {
    manager.close();
  }
}

for (const shareMemory of [true, false]) {
  const way = shareMemory ? 'mapped' : 'messages';
  t.test(`what a device writes, and how fast that is copied, ${way}`, async (t) => {
    const [{ server, driver }, dest] = [await guest(t, { shareMemory }), serveNvme(t)];
    const before = resources();
    const idle = await check(server, dest);
    t.match(idle, { compatible: true, notExpected: null, expected: { devices: [{ copiedBy: way }] } });
    t.equal(idle.expected?.devices[0]?.pageBytes, 0, 'a device that does nothing writes nothing');
    t.ok((idle.expected?.totalMs ?? 0) >= 300, 'QEMU may use what it is given');
    await until(() => resources().fds <= before.fds && resources().maps <= before.maps);

    const end = readOn(driver);
    const { expected } = await check(server, dest);
    const short = await check(server, dest, 0.01);
    await end();
    if (expected === null) return t.fail('nothing is expected');
    const { totalMs, fixedMs, pagesMs, qemuMs, devices } = expected;
    const [device] = devices;
    if (device === undefined) return t.fail('no device');
    if (shareMemory) {
      t.ok(device.pageBytes >= PART && device.pageBytes <= PARTS * PART + MIB, `${device.pageBytes} bytes`);
      t.ok(device.dirtyBytesPerSecond > 0, 'and more all the time');
      t.equal(short.expected?.devices[0]?.byMessage, true, 'they are too many for no pause at all');
    } else t.match(device, { pageBytes: 0, dirtyBytesPerSecond: 0 }, 'QEMU notices those writes');
    t.equal(device.byMessage, false);
    t.ok(device.copyBytesPerSecond > 0);
    const grown = device.pageBytes + device.dirtyBytesPerSecond / 5;
    const copying = (1000 * grown) / device.copyBytesPerSecond;
    t.ok(Math.abs(pagesMs - copying) <= 0.01 * copying, `${pagesMs} ms of pages, ${copying} by these rates`);
    t.ok(fixedMs > 0);
    t.ok(Math.abs(totalMs - fixedMs - pagesMs - qemuMs) < 1e-6);
    t.equal(await logOf(server), Errno.EINVAL, 'the log is off again');
    await until(() => resources().fds <= before.fds);
  });
}

t.test('the device does not notice, and its memory is as it was', async (t) => {
  const [source, dest] = [serveScratch(t), serveScratch(t)];
  const vmm = await source.vmm();
  const fd = memfd(32 * MIB);
  t.teardown(() => fd.close());
  await vmm.request(Command.DMA_MAP, [dmaMap(2 ** 32, 32 * MIB, 3)], () => {}, { fds: [fd] });
  const manager = await source.manager();
  const content = Uint8Array.from({ length: 16 * MIB }, (_, at) => (at * 7) >> 4);
  await manager.writeMemory(2 ** 32, content);
  source.scratch.takeCalls();
  const { expected } = await check(source, dest);
  t.ok((expected?.devices[0]?.copyBytesPerSecond ?? 0) > 0);
  t.strictSame([source.scratch.takeCalls(), dest.scratch.takeCalls()], [[], []]);
  const after = new Uint8Array(content.length);
  await manager.readMemory(2 ** 32, after);
  t.ok(Buffer.from(after).equals(content));
});

t.test('where nothing can be measured it is said why, and nothing is touched', async (t) => {
  const [{ server, machine, driver }, dest] = [await guest(t), serveNvme(t)];
  const why = async (source: Served, to: Served): Promise<string | null> => {
    const { expected, notExpected } = await check(source, to);
    t.equal(expected, null);
    return notExpected;
  };
  t.equal(await why(dest, server), 'no VMM is connected to the source');
  t.equal(await why(server, serveScratch(t)), 'the two do not fit together');

  const manager = await server.manager();
  await manager.startLogging({ pageSize: 4096, ranges: [] });
  const buffer = driver.allocate(PART);
  await driver.read(0, buffer);
  t.match(await why(server, dest), /^another operation is logging what the device writes/);
  const { base: iova, length } = machine.ram;
  const bitmap = await manager.reportLogging({ iova, length, pageSize: 4096 });
  const pages = bitmap.reduce((sum, byte) => sum + byte.toString(2).replaceAll('0', '').length, 0);
  t.ok(pages >= PART / 4096, `${pages} pages: that operation has lost nothing`);
  await manager.stopLogging();
  await manager.setState(MigrationState.PRE_COPY);
  t.match(await why(server, dest), /^the source's device is PRE_COPY, not running$/);
  await manager.setState(MigrationState.RUNNING);
  t.equal((await check(server, dest)).notExpected, null);
});

t.test('behind relays, also when the check is killed', async (t) => {
  const [source, dest] = [new RelayBed(t), new RelayBed(t)];
  for (const bed of [source, dest]) {
    bed.serveScratch();
    const vmm = await bed.vmm();
    const fd = memfd(16 * MIB);
    t.teardown(() => fd.close());
    await vmm.request(Command.DMA_MAP, [dmaMap(2 ** 32, 16 * MIB, 3)], () => {}, { fds: [fd] });
  }
  const { expected } = await check(source, dest);
  t.match(expected, { devices: [{ copiedBy: 'messages', pageBytes: 0 }] });
  t.ok((expected?.devices[0]?.copyBytesPerSecond ?? 0) > 0);
  t.equal(await logOf(source), Errno.EINVAL, 'the log is off again');
  await untilKilled({ operation: 'checkDevices', options: optionsOf(source, dest) });
  await until(async () => (await logOf(source)) !== Errno.EBUSY);
  t.equal(await logOf(source), Errno.EINVAL);
});

t.test('a check that is killed while it measures leaves no log', async (t) => {
  const [{ server, driver }, dest] = [await guest(t), serveNvme(t)];
  const end = readOn(driver);
  await untilKilled({ operation: 'checkDevices', options: optionsOf(server, dest) });
  await until(async () => (await logOf(server)) !== Errno.EBUSY);
  t.equal(await logOf(server), Errno.EINVAL);
  await end();
  t.equal((await check(server, dest)).notExpected, null);
});
