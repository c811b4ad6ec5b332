// SPDX-License-Identifier: Apache-2.0
/**
 * The guest lives on while it is moved, and so do those who look after it: it reboots, resets its disk, sleeps, powers off
 * or panics, and other clients of QEMU stop, resume and reset it. Each hits a migration at a moment that is waited for.
 */
import { rmSync } from 'node:fs';
import t, { type Test } from 'tap';
import type { Phase } from '../../src/operations/index.js';
import { type QmpEvent, queryRunState, resumeVm, stopVm } from '../../src/qemu/index.js';
import { devstate } from './harness/devstate-process.js';
import { type LabServer, type LabVm, MigrationLab } from './harness/lab.js';
import type { MigrateOutcome, RunningMigration } from './harness/running-migration.js';

t.setTimeout(900_000);

/** Keeps a migration in pre-copy until {@link hurry}. */
const SLOW = ['--bandwidth', '2M'];

interface Scene {
  readonly lab: MigrationLab;
  readonly source: LabVm;
  readonly server: LabServer;
  readonly destination: LabVm;
  readonly migration: RunningMigration;
}

const precopyRuns = ({ migration }: Scene): Promise<unknown> =>
  migration.reports(({ phase, ramTransferred = 0 }) => phase === 'precopy' && ramTransferred > 0);

/** Somebody else changes a parameter of the migration, which is not in the way. */
const hurry = ({ source }: Scene): Promise<unknown> =>
  source.qmp.execute('migrate-set-parameters', { arguments: { 'max-bandwidth': 0 } });

/** Has an event come of what is done. */
async function expecting(vm: LabVm, name: string, work: () => Promise<unknown>): Promise<QmpEvent> {
  const event = vm.qmp.waitForEvent(name);
  await work();
  return event;
}

const status = async ({ qmp }: LabVm): Promise<string> => (await queryRunState(qmp)).status;

/** Writes to the pvpanic device's port, as the kernel of a guest does. */
const panic = ({ qmp }: LabVm): Promise<unknown> =>
  qmp.execute('human-monitor-command', { arguments: { 'command-line': 'o /b 0x505 1' } });

let number = 0;

/** Migrates a VM while `happens`. */
async function move(
  lab: MigrationLab,
  source: LabVm,
  happens: (scene: Scene) => Promise<unknown>,
  {
    args = SLOW,
    extra = [],
    standsAt,
  }: { args?: readonly string[]; extra?: readonly string[]; standsAt?: Phase } = {},
): Promise<MigrateOutcome & { vm: LabVm; server: LabServer }> {
  const server = await lab.serve(`d${number++}`, { incoming: true });
  const destination = await lab.startVm({ server, incoming: true, extra });
  const migration = lab.startMigrate(source, destination, args, standsAt);
  await happens({ lab, source, server, destination, migration });
  return { ...(await migration.finished), vm: destination, server };
}

async function requireArrived(
  t: Test,
  lab: MigrationLab,
  { code, stderr, vm, server }: Awaited<ReturnType<typeof move>>,
) {
  t.equal(code, 0, 'arrives', { stderr });
  await lab.guestWrites(vm);
  t.same(await lab.lockHolders(), [server.name], 'with its disk');
}

t.test('a guest that reboots, and others who stop, resume, reset and cancel', async (t) => {
  // Behind a bridge, whose bus number a reset takes away.
  const lab = await MigrationLab.create(t, { reboots: true, disks: ['behind-port'] });
  if (lab === undefined) return;
  const a = await lab.serve('a', { args: ['--size', '16M'] });
  let vm = await lab.startVm({ server: a });
  await lab.guestWrites(vm);

  const step = async (
    name: string,
    happens: (t: Test, scene: Scene) => Promise<unknown>,
    then: (t: Test, outcome: Awaited<ReturnType<typeof move>>, source: LabVm) => Promise<LabVm>,
    standsAt?: Phase,
  ): Promise<void> => {
    await t.test(name, async (t) => {
      const source = vm;
      const options = standsAt === undefined ? {} : { args: [], standsAt };
      const outcome = await move(lab, source, (scene) => happens(t, scene), options);
      vm = await then(t, outcome, source);
      await (vm === source ? outcome.vm : source).kill();
    });
  };

  await step(
    'reset in pre-copy, again and again',
    async (_, scene) => {
      await precopyRuns(scene);
      for (let i = 0; i < 3; i++)
        await expecting(scene.source, 'RESET', () => scene.source.qmp.execute('system_reset'));
      await hurry(scene);
    },
    async (t, outcome) => {
      await requireArrived(t, lab, outcome);
      return outcome.vm;
    },
  );

  await step(
    'stopped in pre-copy: it arrives paused',
    async (_, scene) => {
      await precopyRuns(scene);
      await stopVm(scene.source.qmp);
      await hurry(scene);
    },
    async (t, outcome) => {
      t.match(outcome, { code: 0, result: { running: false } });
      t.equal(await status(outcome.vm), 'paused');
      return outcome.vm;
    },
  );

  await step(
    'resumed in pre-copy: it arrives running',
    async (_, scene) => {
      await precopyRuns(scene);
      await resumeVm(scene.source.qmp);
      await hurry(scene);
    },
    async (t, outcome) => {
      t.match(outcome.result, { running: true });
      await requireArrived(t, lab, outcome);
      return outcome.vm;
    },
  );

  await step(
    "QEMU's migration cancelled in pre-copy, and a second one refused",
    async (t, scene) => {
      await precopyRuns(scene);
      await t.rejects(scene.source.qmp.execute('migrate', { arguments: { uri: 'unix:/nowhere' } }));
      await scene.source.qmp.execute('migrate_cancel');
    },
    async (t, { code, stderr }, source) => {
      t.equal(code, 1);
      t.match(stderr, /precopy: .*cancelled.*the VM runs on at the source.*DEVSTATE_E_QEMU_MIGRATION/);
      await lab.guestWrites(source);
      return source;
    },
  );

  await step(
    'cancelled at the switchover: the VM runs on at once',
    async (_, { migration, server, source }) => {
      await migration.at('switchover', () => server.process.signal('SIGSTOP'));
      await expecting(source, 'RESUME', () => source.qmp.execute('migrate_cancel'));
      await migration.reaches('rollback');
      server.process.signal('SIGCONT');
    },
    async (t, { code, stderr }, source) => {
      t.equal(code, 1);
      t.match(stderr, /switchover: .*cancelled.*the VM runs on at the source.*DEVSTATE_E_QEMU_MIGRATION/);
      await lab.guestWrites(source);
      return source;
    },
    'switchover',
  );

  await step(
    'reset at the switchover: it is saved anew',
    async (_, { migration, server, source }) => {
      await migration.at('switchover', () => server.process.signal('SIGSTOP'));
      await expecting(source, 'RESET', () => source.qmp.execute('system_reset'));
      server.process.signal('SIGCONT');
    },
    async (t, outcome) => {
      await requireArrived(t, lab, outcome);
      t.ok(
        outcome.vm.console.lines.some((line) => line.startsWith('ready')),
        'it boots there',
      );
      return outcome.vm;
    },
    'switchover',
  );

  await step(
    'reset when QEMU sends the rest: it is reset where it arrives',
    async (_, { migration, source, destination }) => {
      await migration.at('switchover', () => destination.process.kill('SIGSTOP'));
      await migration.reaches('land');
      const reset = source.qmp.waitForEvent('RESET');
      // QEMU itself waits for the destination: it takes the reset when it has sent all.
      const asked = source.qmp.execute('system_reset');
      asked.catch(() => {});
      destination.process.kill('SIGCONT');
      await Promise.race([reset, migration.finished]);
    },
    async (t, outcome) => {
      await requireArrived(t, lab, outcome);
      return outcome.vm;
    },
    'switchover',
  );

  t.same(await lab.finishAndCheck(vm), []);
});

t.test('a driver that resets its disk over and over', async (t) => {
  const disk = '/sys/bus/pci/devices/0000:00:05.0';
  const beside = `while sleep 0.3; do echo 1 >${disk}/reset; sleep 0.3; echo 1 >/sys/class/nvme/nvme0/reset_controller; done`;
  const lab = await MigrationLab.create(t, { beside, replaceable: true });
  if (lab === undefined) return;
  const a = await lab.serve('a', { args: ['--size', '16M'] });
  let vm = await lab.startVm({ server: a });
  await lab.guestWrites(vm);
  await t.test('its state is saved', async (t) => {
    const file = `${a.image}.state`;
    const state = ['--migration-socket', a.migrationSocket, '--qmp', vm.qmpPath, '--device', 'disk0'];
    const over = await devstate('save', ...state, '--output', a.image);
    t.equal(over.code, 1, 'not over its image');
    t.match(over.stderr, /it is in use.*DEVSTATE_E_OUTPUT/);
    for (let i = 0; i < 3; i++) {
      const { code, stderr } = await devstate('save', '--precopy', ...state, '--output', file);
      t.equal(code, 0, 'saved', { stderr });
      t.equal((await devstate('verify', file)).code, 0, 'one whole state');
      rmSync(file);
    }
    await lab.guestWrites(vm);
  });
  await t.test('its QEMU is replaced', async () => {
    ({ vm } = await lab.upgradeQemu(vm, 'cpr-transfer'));
    await lab.guestWrites(vm);
  });
  for (const args of [SLOW, []]) {
    const outcome = await move(
      lab,
      vm,
      async (scene) => {
        if (args !== SLOW) return;
        await precopyRuns(scene);
        await lab.guestWrites(vm);
        await hurry(scene);
      },
      { args },
    );
    await requireArrived(t, lab, outcome);
    await vm.kill();
    vm = outcome.vm;
  }
  const witness = lab.vms
    .flatMap(({ console }) => console.lines)
    .filter((line) => /^(GAP|BAD|EIO) /.test(line));
  t.same(witness, []);
});

for (const { name, extra, ended } of [
  { name: 'it powers off, and QEMU stays', extra: ['-no-shutdown'], ended: 'shutdown' },
  { name: 'it powers off, and QEMU ends', extra: [], ended: undefined },
]) {
  t.test(`a guest that has ended is not moved: ${name}`, async (t) => {
    const lab = await MigrationLab.create(t);
    if (lab === undefined) return;
    const a = await lab.serve('a', { args: ['--size', '16M'] });
    const source = await lab.startVm({ server: a, extra });
    await lab.guestWrites(source);
    const outcome = await move(
      lab,
      source,
      async (scene) => {
        await precopyRuns(scene);
        await expecting(source, 'SHUTDOWN', async () => source.console.write('stop'));
      },
      { extra },
    );
    t.equal(outcome.code, 1, 'exit code', { stderr: outcome.stderr });
    t.match(outcome.stderr, /precopy: the guest powered off; .*DEVSTATE_E_VM_ENDED/);
    if (ended === undefined) t.match(outcome.stderr, /its QEMU has ended/);
    else t.equal(await status(source), ended, 'the source is as the guest left it');
    await t.rejects(
      queryRunState(outcome.vm.qmp),
      { code: 'DEVSTATE_E_QMP_CLOSED' },
      'and so is the destination',
    );
  });
}

t.test('a device that is removed while it is moved: QEMU aborts, and the error says so', async (t) => {
  const lab = await MigrationLab.create(t, { disks: ['behind-port'] });
  if (lab === undefined) return;
  const source = await lab.startVm({ server: await lab.serve('a', { args: ['--size', '16M'] }) });
  await lab.guestWrites(source);
  // QEMU refuses device_del once its migration has begun, so the request comes before; QEMU removes the device when the guest,
  // which stands, has released it. QEMU 11.1 aborts when it removes a vfio-user device with MSI-X, also without a migration.
  await stopVm(source.qmp);
  await source.qmp.execute('device_del', { arguments: { id: 'disk0' } });
  const outcome = await move(lab, source, async (scene) => {
    await precopyRuns(scene);
    const gone = t.rejects(source.qmp.waitForEvent('DEVICE_DELETED'), { code: 'DEVSTATE_E_QMP_CLOSED' });
    await resumeVm(source.qmp);
    await gone;
  });
  t.equal(outcome.code, 1, 'exit code', { stderr: outcome.stderr });
  t.match(outcome.stderr, /precopy: .*source QEMU is lost.*DEVSTATE_E_ROLLBACK/);
});

t.test('a guest that sleeps, is woken at its destination, and panics', async (t) => {
  const afterwards = [
    'echo mem >/sys/power/state; echo woken',
    'dd if=/dev/nvme0n1 of=/dev/null bs=4096 count=8 iflag=direct 2>&- && echo readable',
    'sleep 1000',
  ].join('\n');
  const lab = await MigrationLab.create(t, { afterwards });
  if (lab === undefined) return;
  const extra = ['-device', 'pvpanic', '-action', 'panic=pause'];
  let vm = await lab.startVm({ server: await lab.serve('a', { args: ['--size', '16M'] }), extra });
  await lab.guestWrites(vm);
  const asleep = await move(
    lab,
    vm,
    async (scene) => {
      await precopyRuns(scene);
      await expecting(vm, 'SUSPEND', async () => vm.console.write('stop'));
      await hurry(scene);
    },
    { extra },
  );
  t.equal(asleep.code, 0, 'arrives', { stderr: asleep.stderr });
  await vm.kill();
  vm = asleep.vm;
  t.equal(await status(vm), 'suspended', 'asleep');
  const again = await move(lab, vm, async () => {}, { args: [], extra });
  t.equal(again.code, 0, 'one that sleeps arrives too', { stderr: again.stderr });
  await vm.kill();
  vm = again.vm;
  t.equal(await status(vm), 'suspended', 'and sleeps on');
  await expecting(vm, 'WAKEUP', () => vm.qmp.execute('system_wakeup'));
  await vm.console.waitFor(/^readable/);
  t.pass('woken there, with its disk');

  const panicked = await move(
    lab,
    vm,
    async (scene) => {
      await precopyRuns(scene);
      await expecting(vm, 'GUEST_PANICKED', () => panic(vm));
    },
    { extra },
  );
  t.equal(panicked.code, 1);
  t.match(
    panicked.stderr,
    /precopy: the guest panicked; the VM stays at the source, guest-panicked.*DEVSTATE_E_VM_ENDED/,
  );
  t.equal(await status(vm), 'guest-panicked');
});
