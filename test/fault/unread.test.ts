// SPDX-License-Identifier: Apache-2.0
/**
 * Commands whose stdout and stderr are a pipe that is full, or that has no reader any more: the device and the guest are
 * served as if each line were read, what was asked for is done, and the command ends once it can. `migrate` is in
 * silent.test.ts, `save` and the servers in test/cli/stderr.test.ts.
 */
import t, { type Test } from 'tap';
import { BLOCK_BYTES, BlockWriter, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { queryRunState } from '../../src/qemu/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { Devstate, devstateCommand } from '../e2e/harness/devstate-process.js';
import { MigrationLab } from '../e2e/harness/lab.js';
import { isRunning, processesOf } from '../e2e/harness/qemu-process.js';
import { TestBed } from '../guest-driver/served-nvme.js';
import { Succession } from '../guest-driver/successors.js';
import { RelayBed } from '../relay/support.js';
import { until } from '../support/served.js';
import { UNREAD_PIPES, type Unread } from '../support/stalled.js';

t.setTimeout(900_000);

const BLOCKS = 256;

async function workingGuest(t: Test, socket: string): Promise<BlockWriter> {
  const machine = await GuestMachine.start(socket, { memoryBytes: 8 * 1024 * 1024 });
  const driver = await NvmeDriver.start(machine, { queues: 2, queueEntries: 16 });
  t.teardown(() => {
    driver.detach();
    machine.close();
  });
  const writer = new BlockWriter(driver, { blocks: BLOCKS, depth: 4 });
  await writer.progress(100);
  return writer;
}

/** Reads what there is, until the command has ended well. */
async function endsWell(t: Test, command: Devstate, pipe: Unread, result: RegExp): Promise<void> {
  let said = '';
  await until(() => {
    said += pipe.read();
    return command.hasEnded;
  });
  said += pipe.read();
  t.equal(await command.exited, 0, 'exit code', { said });
  // Nothing comes back from a pipe without a reader.
  if (said !== '') t.match(said, result, 'its result is the last thing in the pipe');
}

for (const { is, make } of UNREAD_PIPES) {
  t.test(`upgrade: its pipe ${is}`, async (t) => {
    const succession = new Succession(t, BLOCKS * BLOCK_BYTES);
    succession.start('alder');
    const { socketPath, migrationSocketPath, imagePath } = succession;
    const writer = await workingGuest(t, socketPath);
    const upgrade = ['upgrade', '--migration-socket', migrationSocketPath, '-o', 'json', '--'];
    const failing = new Devstate([...upgrade, 'false'], make(t).under);
    t.equal(await failing.exited, 1, 'one that fails ends, although its error is not read');
    await writer.progress(100);

    const pipe = make(t);
    const sockets = ['--socket', socketPath, '--migration-socket', migrationSocketPath];
    const successor = devstateCommand('serve', 'nvme', ...sockets, '--image', imagePath);
    const command = new Devstate([...upgrade, ...successor], pipe.under);
    t.teardown(() => {
      for (const pid of processesOf(succession.directory)) process.kill(pid);
    });
    const generation = async (): Promise<number> => {
      const manager = await succession.manager();
      const status = await manager.handoffStatus();
      manager.close();
      return status.generation;
    };
    await until(async () => (await generation()) === 1);
    // The successor has the same stderr.
    await writer.progress(500);
    await endsWell(t, command, pipe, /"generation": 1,[\s\S]*\}\n$/);
    await writer.stop();
    t.equal(await writer.readBack(), BLOCKS);
  });

  t.test(`relay-switch: its pipe ${is}`, async (t) => {
    const bed = new TestBed(t, BLOCKS * BLOCK_BYTES);
    const first = await bed.serve();
    const { controlPath, listenPath } = new RelayBed(t, { serverPath: first.socketPath });
    const writer = await workingGuest(t, listenPath);
    const next = await bed.serve({ incoming: true });
    const pipe = make(t);
    const replace = ['relay-switch', '--control', controlPath, '--unproven', '-o', 'json', '--server'];
    const failing = new Devstate([...replace, `${first.socketPath}.none`], make(t).under);
    t.equal(await failing.exited, 5, 'one that fails ends, although its error is not read');
    await writer.progress(100);

    const command = new Devstate([...replace, next.socketPath], pipe.under);
    await until(async () => (await next.manager.state()) === MigrationState.RUNNING);
    await writer.progress(500);
    await endsWell(t, command, pipe, /"status": "completed",[\s\S]*\}\n$/);
    await writer.stop();
    t.equal(await writer.readBack(), BLOCKS);
  });
}

t.test('with a QEMU', async (t) => {
  const lab = await MigrationLab.create(t, { replaceable: true });
  if (lab === undefined) return;
  const a = await lab.serve('a', { args: ['--size', '16M'] });
  let vm = await lab.startVm({ server: a });
  await lab.guestWrites(vm);

  for (const [number, { is, make }] of UNREAD_PIPES.entries()) {
    await t.test(`recover: its pipe ${is}`, async (t) => {
      const server = await lab.serve(`b${number}`, { incoming: true });
      const destination = await lab.startVm({ server, incoming: true });
      const migration = lab.startMigrate(vm, destination, [], 'switchover');
      await migration.at('switchover', () => migration.process.signal('SIGKILL'));
      await migration.finished;
      const pipe = make(t);
      const ends = ['--source-qmp', vm.qmpPath, '--dest-qmp', destination.qmpPath];
      const device = ['--device', `disk0,source=${a.migrationSocket}`];
      const command = new Devstate(['recover', ...ends, ...device, '-o', 'json'], pipe.under);
      await until(async () => (await queryRunState(vm.qmp)).running);
      await lab.guestWrites(vm);
      t.same(await lab.lockHolders(), ['a']);
      await endsWell(t, command, pipe, /"status": "recovered",[\s\S]*\}\n$/);
      await destination.kill();
      await server.process.end();
    });

    await t.test(`upgrade --qemu: its pipe ${is}`, async (t) => {
      const { plan, args } = await lab.planUpgrade(vm, 'cpr-transfer');
      const pipe = make(t);
      const command = new Devstate(args, pipe.under);
      const old = vm.process.pid ?? 0;
      const pids = (): number[] => processesOf(plan.directory).filter((pid) => pid !== command.process.pid);
      await until(() => !isRunning(old));
      vm = await lab.adoptVm(vm, plan, pids()[0]);
      await lab.guestWrites(vm);
      await endsWell(t, command, pipe, /"status": "completed",[\s\S]*\}\n$/);
    });
  }
  t.same(await lab.finishAndCheck(vm), []);
});
