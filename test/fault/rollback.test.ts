// SPDX-License-Identifier: Apache-2.0
/**
 * Whatever fails while a VM migrates, and whenever: the source continues. One guest writes through all of it; after each
 * fault it must write on where it was, hold its disk, and in the end have lost nothing.
 *
 * Processes are held still with SIGSTOP where a fault has to hit a certain moment.
 */
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Phase } from '../../src/operations/index.js';
import { type QmpEvent, queryRunState } from '../../src/qemu/index.js';
import { Devstate, devstate } from '../e2e/harness/devstate-process.js';
import { type LabServer, type LabVm, MigrationLab } from '../e2e/harness/lab.js';
import type { RunningMigration } from '../e2e/harness/running-migration.js';

t.setTimeout(900_000);

/** Keeps a migration in pre-copy for as long as a test wants. */
const SLOW = ['--bandwidth', '2M'];

interface Fault {
  readonly name: string;
  /** More of `devstate migrate`'s arguments. */
  readonly args?: readonly string[];
  /** More of the destination server's. */
  readonly serverArgs?: readonly string[];
  readonly image?: string;
  /** For `RunningMigration.at`. */
  readonly standsAt?: Phase;
  /** What goes wrong. */
  readonly happens?: (scene: Scene) => Promise<void>;
  readonly code: number;
  /** In the error, beside its code. */
  readonly says: RegExp;
}

/** One attempt at a migration. */
interface Scene {
  readonly migration: RunningMigration;
  readonly source: LabVm;
  readonly server: LabServer;
  readonly destination: LabVm;
}

const precopyRuns = ({ migration }: Scene): Promise<unknown> =>
  migration.reports(({ phase, ramTransferred = 0 }) => phase === 'precopy' && ramTransferred > 0);
const hold = ({ process }: { process: { kill(signal: NodeJS.Signals): unknown } }): unknown =>
  process.kill('SIGSTOP');
const letGo = ({ process }: { process: { kill(signal: NodeJS.Signals): unknown } }): unknown =>
  process.kill('SIGCONT');

const isMigration =
  (status: string) =>
  ({ name, data }: QmpEvent): boolean =>
    name === 'MIGRATION' && data.status === status;

const faults: Fault[] = [
  {
    name: 'SIGINT in pre-copy',
    args: SLOW,
    happens: async (scene) => {
      await precopyRuns(scene);
      scene.migration.process.signal('SIGINT');
    },
    code: 4,
    says: /precopy: .*cancelled.*DEVSTATE_E_CANCELLED/,
  },
  {
    name: 'time limit in pre-copy',
    args: [...SLOW, '--timeout-s', '6'],
    code: 4,
    says: /precopy: .*did not complete within 6 s.*DEVSTATE_E_TIMEOUT/,
  },
  {
    name: 'SIGTERM at switchover',
    standsAt: 'switchover',
    happens: async ({ migration, server }) => {
      await migration.at('switchover', () => hold(server.process));
      migration.process.signal('SIGTERM');
      letGo(server.process);
    },
    code: 4,
    says: /switchover: .*cancelled.*DEVSTATE_E_CANCELLED/,
  },
  {
    name: 'SIGINT while the destination completes',
    standsAt: 'switchover',
    happens: async ({ migration, destination }) => {
      await migration.at('switchover', () => hold(destination));
      await migration.reaches('land');
      migration.process.signal('SIGINT');
      await migration.reaches('rollback');
      letGo(destination);
    },
    code: 4,
    says: /land: .*cancelled.*DEVSTATE_E_CANCELLED/,
  },
  {
    name: 'parameters that differ',
    serverArgs: ['--param', 'mdts=5', '--param', 'queues=2'],
    code: 3,
    says: /check: .*mdts is 7 at the source, 5.*queues is 4 at the source, 2.*DEVSTATE_E_INCOMPATIBLE/,
  },
  {
    name: 'destination server killed in pre-copy',
    args: SLOW,
    happens: async (scene) => {
      await precopyRuns(scene);
      await scene.server.process.end();
    },
    code: 1,
    says: /precopy: .*disk0.*destination server.*DEVSTATE_E_CONNECTION_CLOSED/,
  },
  {
    name: 'destination server killed at switchover',
    standsAt: 'switchover',
    happens: async ({ migration, server }) => {
      await migration.at('switchover', () => hold(server.process));
      await server.process.end();
    },
    code: 1,
    says: /switchover: .*disk0.*DEVSTATE_E_CONNECTION_CLOSED/,
  },
  {
    name: 'destination server killed while QEMU completes',
    standsAt: 'switchover',
    happens: async ({ migration, server, destination }) => {
      await migration.at('switchover', () => hold(destination));
      await migration.reaches('land');
      await server.process.end();
      letGo(destination);
    },
    code: 1,
    says: /land: .*disk0.*DEVSTATE_E_CONNECTION_CLOSED/,
  },
  {
    name: 'destination QEMU killed in pre-copy',
    args: SLOW,
    happens: async (scene) => {
      await precopyRuns(scene);
      await scene.destination.kill();
    },
    code: 1,
    says: /precopy: .*DEVSTATE_E_Q/,
  },
  {
    name: 'destination QEMU killed while it completes',
    standsAt: 'switchover',
    happens: async ({ migration, destination }) => {
      await migration.at('switchover', () => hold(destination));
      await migration.reaches('land');
      await destination.kill();
    },
    code: 1,
    says: /land: .*DEVSTATE_E_Q/,
  },
  {
    name: 'destination QEMU killed after it completed, before it runs',
    standsAt: 'switchover',
    happens: async ({ migration, source, destination }) => {
      const continued = source.qmp.waitForEvent(isMigration('device'));
      const completed = destination.qmp.waitForEvent(isMigration('completed'));
      await migration.at('switchover', () => hold(destination));
      await continued;
      migration.process.signal('SIGSTOP');
      letGo(destination);
      await completed;
      await destination.kill();
      migration.process.signal('SIGCONT');
    },
    code: 1,
    says: /land: .*DEVSTATE_E_Q/,
  },
];

/** Starts a destination and a migration to it, has the fault happen, and ends the destination. */
async function attempt(lab: MigrationLab, source: LabVm, number: number, fault: Fault) {
  const options = { incoming: true, args: fault.serverArgs ?? [] };
  const server = await lab.serve(
    `b${number}`,
    fault.image === undefined ? options : { ...options, image: fault.image },
  );
  const destination = await lab.startVm({ server, incoming: true });
  // A copy stands for storage that is replicated by other means.
  const copied = fault.image === undefined ? [] : ['--image-unchecked', 'disk0'];
  const args = [...(fault.args ?? []), ...copied];
  const migration = lab.startMigrate(source, destination, args, fault.standsAt);
  await fault.happens?.({ migration, source, server, destination });
  const outcome = await migration.finished;
  await destination.kill();
  await server.process.end('SIGTERM');
  return outcome;
}

async function requireSourceRuns(t: Test, lab: MigrationLab, source: LabVm): Promise<void> {
  await lab.guestWrites(source);
  t.same(await lab.lockHolders(), ['a'], 'the source holds the image');
}

t.test('faults', async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const a = await lab.serve('a', { args: ['--size', '16M'] });
  const source = await lab.startVm({ server: a });
  await lab.guestWrites(source);
  let number = 0;

  for (const fault of faults) {
    await t.test(fault.name, async (t) => {
      const { code, stderr } = await attempt(lab, source, number++, fault);
      t.equal(code, fault.code, 'exit code', { stderr });
      t.match(stderr, fault.says);
      await requireSourceRuns(t, lab, source);
    });
  }

  await t.test('the destination refuses the state: its image is in use', async (t) => {
    const image = join(lab.directory, 'copy.img');
    await copyFile(lab.image(), image);
    const paths = [
      '--socket',
      join(lab.directory, 'c.sock'),
      '--migration-socket',
      join(lab.directory, 'c.mig'),
    ];
    const holder = new Devstate(['serve', 'nvme', ...paths, '--image', image]);
    t.teardown(() => holder.end());
    await holder.saysOnStderr(/serving/);
    const { code, stderr } = await attempt(lab, source, number++, { name: '', image, code: 1, says: /./ });
    t.equal(code, 1, 'exit code', { stderr });
    t.match(stderr, /land: .*disk0.*EBUSY.*copy\.img is in use.*DEVSTATE_E_REFUSED/);
    await requireSourceRuns(t, lab, source);
  });

  for (const [phase, args] of [
    ['precopy', SLOW],
    ['switchover', []],
  ] as const) {
    await t.test(`devstate killed in ${phase}, then devstate recover`, async (t) => {
      const server = await lab.serve(`b${number++}`, { incoming: true });
      const destination = await lab.startVm({ server, incoming: true });
      const migration = lab.startMigrate(source, destination, args, phase);
      await migration.at(phase, () => hold(server.process));
      migration.process.signal('SIGKILL');
      await migration.finished;
      letGo(server.process);
      const { code, stdout, stderr } = await devstate(
        ...['recover', '--source-qmp', source.qmpPath, '--dest-qmp', destination.qmpPath],
        ...['--device', `disk0,source=${a.migrationSocket}`, '-o', 'json'],
      );
      t.equal(code, 0, 'recover', { stderr });
      t.match(JSON.parse(stdout), { status: 'recovered', running: true });
      await requireSourceRuns(t, lab, source);
      await destination.kill();
      await server.process.end('SIGTERM');
    });
  }

  await t.test('recover where nothing is wrong', async (t) => {
    const { code } = await devstate(
      ...['recover', '--source-qmp', source.qmpPath, '--device', `disk0,source=${a.migrationSocket}`],
    );
    t.equal(code, 0);
    await requireSourceRuns(t, lab, source);
  });

  await t.test('after all of this a migration succeeds, and nothing was lost', async (t) => {
    const server = await lab.serve('last', { incoming: true });
    const destination = await lab.startVm({ server, incoming: true });
    const { code, stderr } = await lab.migrate(source, destination);
    t.equal(code, 0, 'devstate migrate', { stderr });
    await lab.guestWrites(destination);
    t.same(await lab.lockHolders(), ['last']);

    const recover = await devstate(
      ...['recover', '--source-qmp', source.qmpPath, '--dest-qmp', destination.qmpPath],
      ...['--device', `disk0,source=${a.migrationSocket}`],
    );
    t.equal(recover.code, 3, 'a VM that has moved is not recovered');
    t.match(recover.stderr, /runs at the destination.*DEVSTATE_E_INCOMPATIBLE/);
    t.equal((await queryRunState(source.qmp)).running, false);
    await lab.guestWrites(destination);

    const blind = await devstate(
      ...['recover', '--source-qmp', source.qmpPath, '--device', `disk0,source=${a.migrationSocket}`],
    );
    t.equal(blind.code, 3, 'nor without asking the destination: it was not to come back');
    t.match(blind.stderr, /migrated away.*DEVSTATE_E_INCOMPATIBLE/);
    t.equal((await queryRunState(source.qmp)).running, false);
    t.same(await lab.finishAndCheck(destination), []);
    await source.kill();
  });

  await t.test('the source server dies: nothing can save the VM, but the error says so', async (t) => {
    const dying = await lab.serve('dying', {
      image: join(lab.directory, 'other.img'),
      args: ['--size', '16M'],
    });
    const server = await lab.serve('unused', { image: dying.image, incoming: true });
    const vm = await lab.startVm({ server: dying });
    const destination = await lab.startVm({ server, incoming: true });
    const migration = lab.startMigrate(vm, destination, SLOW);
    await precopyRuns({ migration, source: vm, server, destination });
    await dying.process.end();
    const { code, stderr } = await migration.finished;
    t.equal(code, 1);
    t.match(stderr, /precopy: .*disk0.*source server.*DEVSTATE_E_ROLLBACK/);
  });
});
