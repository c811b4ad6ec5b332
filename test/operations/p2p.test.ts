// SPDX-License-Identifier: Apache-2.0
/** Several devices of one VM stop and run together: those that can are quiet before the first stops. */

import t from 'tap';
import { openDeviceSocket } from '../../src/operations/device-socket.js';
import { type DevicesOfVm, runDestinations, stopSources } from '../../src/operations/migrate/p2p.js';
import { MigrationFlag, MigrationState, migrationStateName } from '../../src/wire/index.js';
import { serveScratch, type Test, until } from '../support/served.js';

const { RUNNING, STOP, STOP_COPY, PRE_COPY } = MigrationState;

/** Three devices, the second of which is slow in the step `slow`; every step of any, in order. */
async function vm(t: Test, slow: string, protocols: readonly ('v1' | 'v2')[]) {
  const steps: string[] = [];
  let finish = (): void => {};
  const waits = new Promise<void>((resolve) => {
    finish = resolve;
  });
  let waiting = false;
  const devices = await Promise.all(
    protocols.map(async (migration, i) => {
      const { scratch, migrationPath } = serveScratch(t, { migration });
      const socket = await openDeviceSocket(migrationPath);
      t.teardown(() => socket.device.close());
      scratch.hook = (step) => {
        steps.push(`${i} ${step}`);
        if (i !== 1 || step !== slow) return;
        waiting = true;
        return waits;
      };
      return { id: `disk${i}`, source: socket, destination: socket, scratch };
    }),
  );
  const run: DevicesOfVm = { devices, signal: new AbortController().signal };
  return { run, devices, steps, finish, untilSlow: () => until(() => waiting) };
}

for (const from of [RUNNING, PRE_COPY]) {
  t.test(`from ${migrationStateName(from)}: no device stops before all are quiet`, async (t) => {
    const { run, devices, steps, finish, untilSlow } = await vm(t, 'quiesce', ['v2', 'v2', 'v2']);
    for (const { source } of devices) await source.device.setState(from);
    const stopped = stopSources(run);
    await untilSlow();
    // The others have long been asked, and wait.
    await until(() => steps.length === 3);
    for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
    t.same(steps.slice().sort(), ['0 quiesce', '1 quiesce', '2 quiesce']);
    finish();
    await stopped;
    t.same(steps.slice(3).sort(), ['0 releaseExclusive', '1 releaseExclusive', '2 releaseExclusive']);
    for (const { source } of devices) t.equal(await source.device.state(), STOP_COPY);
  });
}

t.test('and no device runs before all can be written to', async (t) => {
  const { run, devices, steps, finish, untilSlow } = await vm(t, 'acquireExclusive', ['v2', 'v2', 'v2']);
  for (const { destination } of devices) {
    await destination.device.setState(STOP_COPY);
    await destination.device.setState(STOP);
  }
  steps.length = 0;
  const running = runDestinations(run);
  await untilSlow();
  await until(() => steps.length === 3);
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
  t.same(steps.slice().sort(), ['0 acquireExclusive', '1 acquireExclusive', '2 acquireExclusive']);
  finish();
  await running;
  t.same(steps.slice(3).sort(), ['0 resume', '1 resume', '2 resume']);
});

t.test('a device without P2P states goes along', async (t) => {
  const { run, devices, steps } = await vm(t, '', ['v2', 'v1', 'v2']);
  t.equal(devices[1]!.source.flags & MigrationFlag.P2P, 0);
  for (const { source } of devices) await source.device.setState(PRE_COPY);
  await stopSources(run);
  for (const { source } of devices) t.equal(await source.device.state(), STOP_COPY);
  t.ok(steps.indexOf('1 quiesce') > steps.indexOf('0 quiesce'));
  t.ok(steps.indexOf('1 quiesce') > steps.indexOf('2 quiesce'), 'after those that have them');
  for (const { source } of devices) await source.device.setState(STOP);
  await runDestinations(run);
  for (const { scratch } of devices) t.equal(scratch.running, true);
});
