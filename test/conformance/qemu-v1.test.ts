// SPDX-License-Identifier: Apache-2.0
/** The migration region as QEMU 5.2 to 7.2 uses it: live, paused, cancelled and failing. */

import t from 'tap';
import { DeviceState, Errno, RequestError } from '../../src/wire/index.js';
import { sameBytes } from '../support/hex.js';
import { type QemuStream, QemuV1 } from '../support/qemu-v1.js';
import type { ScratchDevice } from '../support/scratch-device.js';
import { outcome, serveScratch, type Test } from '../support/served.js';

const { STOP, RUNNING, STOP_COPY, PRE_COPY, RESUMING, ERROR } = DeviceState;
const SIZE = 2048;

async function machine(t: Test, dataSize = 512, mapped = false) {
  const served = serveScratch(t, {
    stateSize: SIZE,
    chunk: 256,
    migration: 'v1',
    migrationRegion: { dataSize, mapped },
  });
  const vmm = await served.vmm();
  const { scratch } = served;
  for (let i = 0; i < SIZE; i++) scratch.state.memory[i] = (i * 7) & 0xff;
  return { device: scratch, vmm, qemu: await QemuV1.realize(vmm) };
}

function requireSame(t: { ok(value: boolean): unknown }, a: ScratchDevice, b: ScratchDevice): void {
  t.ok(sameBytes(a.state.memory, b.state.memory) && sameBytes(a.state.registers, b.state.registers));
}

for (const [what, from, to] of [
  ['regions of one size', 512, 512],
  ['a destination with less room', 512, 200],
  ['odd sizes', 333, 4097],
] as const) {
  t.test(`live, ${what}`, async (t) => {
    const [source, destination] = [await machine(t, from), await machine(t, to)];
    destination.device.state.memory.fill(0);
    const stream: QemuStream = [];
    await source.qemu.saveSetup();
    t.equal(await source.qemu.deviceState(), PRE_COPY);
    t.equal(source.device.running, true);
    // Once round, changed, and round again until there is nothing for now.
    let rounds = 0;
    while (await source.qemu.saveIterate(stream)) {
      if (rounds++ === 2) source.device.state.write(10, Uint8Array.of(0xaa, 0xbb));
      if (rounds > 100) throw new Error('pre-copy does not end');
    }
    source.device.state.write(700, Uint8Array.of(0xcc));
    await source.qemu.saveIterate(stream);
    await source.qemu.vmStateChange(false);
    t.equal(await source.qemu.deviceState(), STOP_COPY, 'the VM stops before the migration completes');
    await source.qemu.saveComplete(stream);
    t.equal(await source.qemu.deviceState(), STOP);

    await destination.qemu.loadSetup();
    t.equal(await destination.qemu.deviceState(), RESUMING);
    for (const data of stream) await destination.qemu.loadBuffer(data);
    await destination.qemu.vmStateChange(true);
    t.equal(await destination.qemu.deviceState(), RUNNING);
    t.equal(destination.device.running, true);
    requireSame(t, source.device, destination.device);
  });
}

t.test('a mapped section, read and written by messages', async (t) => {
  const [source, destination] = [await machine(t, 4096, true), await machine(t, 4096, true)];
  destination.device.state.memory.fill(0);
  const stream: QemuStream = [];
  await source.qemu.saveSetup();
  await source.qemu.vmStateChange(false);
  await source.qemu.saveComplete(stream);
  await destination.qemu.loadSetup();
  for (const data of stream) await destination.qemu.loadBuffer(data);
  await destination.qemu.vmStateChange(true);
  requireSame(t, source.device, destination.device);
});

t.test('a VM that is paused, saved, and continues', async (t) => {
  const source = await machine(t);
  const stream: QemuStream = [];
  await source.qemu.vmStateChange(false);
  t.equal(await source.qemu.deviceState(), STOP);
  await source.qemu.saveSetup();
  t.equal(await source.qemu.deviceState(), STOP_COPY);
  await source.qemu.saveComplete(stream);
  t.equal(await source.qemu.deviceState(), STOP);
  await source.qemu.vmStateChange(true);
  t.equal(await source.qemu.deviceState(), RUNNING);
  t.equal(source.device.running, true);
  t.ok(Buffer.concat(stream).length > SIZE);
});

t.test('cancelled, at each point', async (t) => {
  const points: [string, (qemu: QemuV1, stream: QemuStream) => Promise<unknown>][] = [
    ['set up', async () => {}],
    ['in pre-copy', (qemu, stream) => qemu.saveIterate(stream)],
    ['stopped', (qemu) => qemu.vmStateChange(false)],
    ['complete', (qemu, stream) => qemu.vmStateChange(false).then(() => qemu.saveComplete(stream))],
  ];
  for (const [what, go] of points) {
    const { device, qemu } = await machine(t);
    await qemu.saveSetup();
    await go(qemu, []);
    await qemu.cancelled();
    t.equal(await qemu.deviceState(), RUNNING, what);
    t.equal(device.running, true);
    t.equal(device.holdsLock, true);
    // And it can be saved again, all of it.
    const stream: QemuStream = [];
    await qemu.saveSetup();
    await qemu.vmStateChange(false);
    await qemu.saveComplete(stream);
    t.ok(Buffer.concat(stream).length > SIZE, `${what}: and again`);
  }
});

t.test('what fails, QEMU notices', async (t) => {
  const source = await machine(t);
  source.device.hook = (step) => {
    if (step === 'releaseExclusive') throw new RequestError(Errno.EBUSY, 'no');
  };
  await source.qemu.saveSetup();
  t.equal(await outcome(source.qemu.vmStateChange(false)), Errno.EBUSY);
  t.equal(await source.qemu.deviceState(), PRE_COPY, 'as before');
  t.equal(source.device.running, true);

  const destination = await machine(t);
  await destination.qemu.loadSetup();
  t.equal(await outcome(destination.qemu.loadBuffer(new Uint8Array(600).fill(1))), Errno.EINVAL, 'no state');
  t.match(await outcome(destination.qemu.vmStateChange(true)), /hw_error/);
  t.equal(await destination.qemu.deviceState(), ERROR);
  await destination.vmm.reset();
  t.equal(await destination.qemu.deviceState(), RUNNING);
});
