// SPDX-License-Identifier: Apache-2.0
/** The built-in guest against the NVMe device, on real sockets, files and eventfds. */

import { randomBytes } from 'node:crypto';
import t, { type Test } from 'tap';
import { IoOpcode } from '../../src/devices/nvme/spec/index.js';
import {
  type DmaBuffer,
  GuestMachine,
  type GuestMachineOptions,
  NvmeDriver,
  type NvmeDriverOptions,
  PAGE_SIZE,
} from '../../src/guest-driver/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { type ServeOptions, TestBed } from './served-nvme.js';

type Options = ServeOptions & { driver?: NvmeDriverOptions; machine?: GuestMachineOptions };

async function boot(t: Test, options: Options = {}) {
  const bed = new TestBed(t);
  const served = await bed.serve(options);
  const machine = await GuestMachine.start(served.socketPath, options.machine);
  t.teardown(() => machine.close());
  const driver = await NvmeDriver.start(machine, options.driver);
  t.teardown(() => driver.detach());
  return { bed, ...served, machine, driver };
}

/** A buffer of random content, and the content. */
function randomBuffer(
  driver: NvmeDriver,
  length: number,
  offset = 0,
): { buffer: DmaBuffer; data: Uint8Array } {
  const buffer = driver.allocate(length, offset);
  const data = new Uint8Array(randomBytes(length));
  buffer.fill(data);
  return { buffer, data };
}

t.test('identifies what the device was made with', async (t) => {
  const parameters = {
    serial: 'SN-7',
    firmware: '2.5',
    model_number: 'a model',
    mdts: 5,
    lba_size: 4096,
    queues: 2,
  };
  const { driver, machine } = await boot(t, { parameters, driver: { queues: 8 } });
  t.same(driver.controller, {
    serial: 'SN-7',
    modelNumber: 'a model',
    firmware: '2.5',
    maxTransfer: 32 * 4096,
    volatileWriteCache: true,
  });
  t.same(driver.namespace, { blocks: 4096, blockSize: 4096 });
  t.equal(driver.queueCount, 2, 'as many queues as the controller grants');
  t.equal(machine.vectors, 3);
});

for (const [name, options] of [
  ['MSI-X, shared memory', {}],
  ['polling', { driver: { completion: 'polling' } }],
  ['memory by messages', { machine: { shareMemory: false } }],
] as [string, Options][]) {
  t.test(`${name}: data of every shape go to the image and come back`, async (t) => {
    const { bed, driver } = await boot(t, { ...options, parameters: { mdts: 10 } });
    t.equal(driver.controller.maxTransfer, 1024 * PAGE_SIZE);
    const shapes = [
      [512, 0],
      [512, 4092],
      [4096, 0],
      [4096, 512],
      [8192, 0],
      [8192, 4],
      [3 * 4096, 0],
      [513 * 4096, 0], // PRP1 and one full list
      [514 * 4096, 0], // the list is one entry too short: a second one
      [1024 * 4096, 2048], // as much as one command can, and a page more for the offset
      [1025 * 4096, 0], // two commands
    ] as const;
    for (const [length, offset] of shapes) {
      const { buffer, data } = randomBuffer(driver, length, offset);
      const lba = Math.floor(Math.random() * (driver.namespace.blocks - length / 512));
      await driver.write(lba, buffer);
      t.ok(
        Buffer.compare(bed.content().subarray(lba * 512, lba * 512 + length), data) === 0,
        `${length}: written`,
      );
      buffer.fill(new Uint8Array(length));
      await driver.read(lba, buffer);
      t.ok(Buffer.compare(buffer.bytes(), data) === 0, `${length} at ${offset} of a page: read back`);
      buffer.free();
    }
    t.match(driver.counters, { failed: 0, timedOut: 0, late: 0 });
    t.equal(driver.counters.bytesRead, driver.counters.bytesWritten);
    if (options.driver?.completion === 'polling') t.equal(driver.counters.interrupts, 0);
    else t.ok(driver.counters.interrupts > 0);
  });
}

t.test('many commands in flight on several queues, more than the queues hold', async (t) => {
  const { bed, driver } = await boot(t, { driver: { queues: 4, queueEntries: 8 } });
  const expected = bed.content().slice();
  const buffers: DmaBuffer[] = [];
  for (let i = 0; i < 500; i++) {
    const { buffer, data } = randomBuffer(driver, 4096);
    const lba = 8 * i;
    expected.set(data, lba * 512);
    buffers.push(buffer);
  }
  const writes = buffers.map((buffer, i) => driver.write(8 * i, buffer));
  t.equal(driver.outstanding, 4 * 7, 'every ring is full');
  await Promise.all(writes);
  await driver.flush();
  t.equal(driver.outstanding, 0);
  t.ok(Buffer.compare(bed.content(), expected) === 0);
  t.ok(driver.counters.doorbells < driver.counters.submitted, 'one doorbell for several commands');
  await driver.writeZeroes(8, 16);
  expected.fill(0, 8 * 512, 24 * 512);
  t.ok(Buffer.compare(bed.content(), expected) === 0);
  t.match(
    driver.counters,
    { submitted: driver.counters.completed + 1, failed: 0 },
    'all but the event request',
  );
});

t.test('errors reach their command and no other', async (t) => {
  const { driver, machine } = await boot(t);
  const { buffer } = randomBuffer(driver, 4096);
  const bad = driver.write(driver.namespace.blocks, buffer);
  const good = driver.write(0, buffer);
  await t.rejects(bad, { code: 'DEVSTATE_E_GUEST_COMMAND', message: /status 0x\w*80\b/ });
  await good;
  await t.rejects(driver.io({ opcode: 0x7f }), { code: 'DEVSTATE_E_GUEST_COMMAND' });
  await t.rejects(driver.io({ opcode: IoOpcode.READ, nsid: 1, prp1: 0x1000 }), {
    code: 'DEVSTATE_E_GUEST_COMMAND',
  });
  await t.rejects(driver.write(0, driver.allocate(100)), RangeError, 'not whole blocks');
  t.throws(() => driver.allocate(machine.ram.length), { code: 'DEVSTATE_E_GUEST_MEMORY' });
  await driver.read(0, buffer);
  t.equal(driver.counters.failed, 3);
});

t.test('a bad doorbell is reported by an asynchronous event', async (t) => {
  const { driver, machine } = await boot(t);
  await machine.write32(0x1000 + 8, 0xffff);
  await driver.flush();
  while (driver.counters.asyncEvents === 0) await driver.flush();
  t.equal(driver.counters.asyncEvents, 1);
});

t.test('commands that the device does not complete time out, and may complete later', async (t) => {
  const { driver, manager } = await boot(t, { driver: { timeoutMs: 100 } });
  await manager.setState(MigrationState.STOP);
  await t.rejects(driver.flush(), { code: 'DEVSTATE_E_GUEST_TIMEOUT' });
  t.equal(driver.outstanding, 1, 'the device still has it');
  await manager.setState(MigrationState.RUNNING);
  await driver.flush();
  t.match(driver.counters, { timedOut: 1, late: 1 });
});

t.test('the clock of commands stands still while the guest is paused', async (t) => {
  const { driver, manager } = await boot(t, { driver: { timeoutMs: 200 } });
  await manager.setState(MigrationState.STOP);
  const flush = driver.flush();
  await driver.pause();
  const waiting = driver.flush();
  t.equal(driver.outstanding, 1, 'a paused guest issues nothing');
  await new Promise((resolve) => setTimeout(resolve, 300)); // longer than the time-out: that is what is tested
  driver.resume();
  await manager.setState(MigrationState.RUNNING);
  await Promise.all([flush, waiting]);
  t.equal(driver.counters.timedOut, 0);
});

t.test('the end of the server ends what waits', async (t) => {
  const { driver, manager, server } = await boot(t);
  await manager.setState(MigrationState.STOP);
  const flush = driver.flush();
  const lost = t.rejects(flush, { code: 'DEVSTATE_E_CONNECTION_CLOSED' });
  manager.close();
  await Promise.all([server.close(), lost]);
  await t.rejects(driver.flush(), { code: 'DEVSTATE_E_CONNECTION_CLOSED' });
});

t.test('a controller can be shut down and taken by another driver', async (t) => {
  const { driver, machine, bed } = await boot(t);
  const { buffer, data } = randomBuffer(driver, 4096);
  await driver.write(3, buffer, { forceUnitAccess: true });
  await driver.shutdown();
  await t.rejects(driver.flush(), { code: 'DEVSTATE_E_GUEST_CONTROLLER' });
  const second = await NvmeDriver.start(machine, { queues: 2 });
  t.teardown(() => second.detach());
  const again = second.allocate(4096);
  await second.read(3, again);
  t.ok(Buffer.compare(again.bytes(), data) === 0);
  t.ok(Buffer.compare(bed.content().subarray(3 * 512, 3 * 512 + 4096), data) === 0);
});
