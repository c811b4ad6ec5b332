// SPDX-License-Identifier: Apache-2.0
/** Peers that are there and do not answer any more, ends of lines that are cut off: the source continues all the same. */
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { queryMigration, queryRunState } from '../../src/qemu/index.js';
import { serveNvme } from '../e2e/harness/devstate-process.js';
import { type LabVm, MigrationLab } from '../e2e/harness/lab.js';
import { isRunning } from '../e2e/harness/qemu-process.js';
import { until } from '../support/served.js';
import { fullPipe, UNREAD_PIPES } from '../support/stalled.js';

t.setTimeout(900_000);

/** Keeps a migration in pre-copy for as long as a test wants. */
const SLOW = ['--bandwidth', '2M'];
/** Longest that a guest may be kept waiting for somebody who does not answer, ms. */
const LONGEST_PAUSE = 20_000;

t.test('one guest', async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const a = await lab.serve('a', { args: ['--size', '16M'] });
  const source = await lab.startVm({ server: a });
  await lab.guestWrites(source);
  let number = 0;
  const newDestination = async (options: { image?: string } = {}) => {
    const server = await lab.serve(`b${number++}`, { incoming: true, ...options });
    return { server, destination: await lab.startVm({ server, incoming: true }) };
  };
  const goesOn = async (t: Test, vm: LabVm, holder: string): Promise<void> => {
    await lab.guestWrites(vm);
    t.same(await lab.lockHolders(), [holder], 'one server holds the image');
  };

  await t.test('a destination server that hangs at switchover', async (t) => {
    const { server, destination } = await newDestination();
    const migration = lab.startMigrate(source, destination, [], 'switchover');
    await migration.at('switchover', () => server.process.signal('SIGSTOP'));
    const cancelled = performance.now();
    migration.process.signal('SIGINT');
    const { code, stderr } = await migration.finished;
    t.equal(code, 4, 'exit code', { stderr });
    t.match(stderr, /switchover: .*cancelled.*DEVSTATE_E_CANCELLED/);
    t.ok(performance.now() - cancelled < LONGEST_PAUSE);
    await goesOn(t, source, 'a');
    await server.process.end();
    await destination.kill();
  });

  await t.test('a destination QEMU that hangs while it completes', async (t) => {
    const { server, destination } = await newDestination();
    const migration = lab.startMigrate(source, destination, [], 'switchover');
    await migration.at('switchover', () => destination.process.kill('SIGSTOP'));
    await migration.reaches('land');
    const cancelled = performance.now();
    migration.process.signal('SIGTERM');
    const { code, stderr } = await migration.finished;
    t.equal(code, 4, 'exit code', { stderr });
    t.match(stderr, /land: .*runs on at the source; the destination QEMU does not quit.*kill it.*CANCELLED/);
    t.ok(performance.now() - cancelled < LONGEST_PAUSE);
    await goesOn(t, source, 'a');
    destination.process.kill('SIGCONT');
    // It may do what it was told before, which is to quit.
    const state = await queryRunState(destination.qmp).catch(() => undefined);
    t.not(state?.running, true, 'when it continues, the VM does not run there');
    await destination.kill();
    await server.process.end();
    await goesOn(t, source, 'a');
  });

  await t.test('a terminal that is closed', async (t) => {
    const { server, destination } = await newDestination();
    const migration = lab.startMigrate(source, destination, SLOW);
    await migration.reaches('precopy');
    migration.process.process.stderr?.destroy();
    migration.process.signal('SIGHUP');
    t.equal((await migration.finished).code, 4);
    await goesOn(t, source, 'a');
    await destination.kill();
    await server.process.end();
  });

  await t.test('a destination that was started without -S does not run by itself', async (t) => {
    const image = join(lab.directory, 'copy.img');
    await copyFile(lab.image(), image);
    const paths = { socket: join(lab.directory, 'c.sock'), migrationSocket: join(lab.directory, 'c.mig') };
    const holder = await serveNvme({ ...paths, image });
    t.teardown(() => holder.end());
    const { server, destination } = await newDestination({ image });
    let resumed = false;
    destination.qmp.onEvent(({ name }) => {
      resumed ||= name === 'RESUME';
    });
    // While it waits, this says only that it is to run when it has everything: what -S prevents.
    await destination.qmp.execute('cont');
    const { code, stderr } = await lab.migrate(source, destination, ['--image-unchecked', 'disk0']);
    t.equal(code, 1, 'exit code', { stderr });
    t.match(stderr, /land: .*EBUSY/);
    t.equal(resumed, false);
    await goesOn(t, source, 'a');
    await destination.kill();
    await server.process.end();
  });

  for (const { is, make } of UNREAD_PIPES) {
    await t.test(`its stdout and stderr are a pipe that ${is}, and it is cancelled`, async (t) => {
      const { server, destination } = await newDestination();
      const migration = lab.startMigrate(source, destination, SLOW, undefined, make(t).under);
      await until(async () => (await queryMigration(source.qmp)).status === 'active');
      const cancelled = performance.now();
      migration.process.signal('SIGINT');
      t.equal((await migration.finished).code, 4);
      t.ok(performance.now() - cancelled < LONGEST_PAUSE);
      await goesOn(t, source, 'a');
      await destination.kill();
      await server.process.end();
    });
  }

  await t.test('no process reads what it says, until the VM has arrived', async (t) => {
    const { server, destination } = await newDestination();
    const full = fullPipe(t);
    const under = ['sh', '-c', 'exec "$@" >"$0" 2>"$0"', full.path];
    const migration = lab.startMigrate(source, destination, [], undefined, under);
    await goesOn(t, destination, server.name);
    let said = '';
    await until(() => {
      said += full.read();
      return said.includes('"totalMs"') && migration.process.hasEnded;
    });
    t.equal((await migration.finished).code, 0);
    t.match(said, /"phase":"land"/, 'what fitted is there');
    t.same(await lab.finishAndCheck(destination), []);
  });
});

t.test('a source QEMU that dies while the destination completes is not gone back to', async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const a = await lab.serve('a', { args: ['--size', '16M'] });
  const source = await lab.startVm({ server: a });
  await lab.guestWrites(source);
  const b = await lab.serve('b', { incoming: true });
  const destination = await lab.startVm({ server: b, incoming: true });
  const migration = lab.startMigrate(source, destination, [], 'switchover');
  await migration.at('switchover', () => destination.process.kill('SIGSTOP'));
  await migration.reaches('land');
  await source.kill();
  destination.process.kill('SIGCONT');
  const { code, stderr } = await migration.finished;
  t.equal(code, 1, 'exit code', { stderr });
  t.match(stderr, /land: .*source QEMU is lost, and the destination was left as it is.*DEVSTATE_E_ROLLBACK/);
  t.ok(isRunning(destination.process.pid ?? 0), 'what there is of the VM is still there');
});
