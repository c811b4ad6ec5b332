// SPDX-License-Identifier: Apache-2.0
/**
 * What devstate sets in a QEMU is put back, whatever it did there and however that ended: one guest goes through every
 * operation and every end of it, and each time its QEMU is compared with what its owner had set up.
 *
 * One thing stays, at the first operation: the qtest server, because a QEMU crashes when it gets a second one.
 */
import { existsSync } from 'node:fs';
import { copyFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { DevstateError } from '../../src/errors.js';
import {
  type MigrateOptions,
  migrate,
  type Phase,
  recover,
  type UpgradeQemuOptions,
  type UpgradeQemuPhase,
  upgradeQemu,
} from '../../src/operations/index.js';
import {
  capturePciView,
  findPciDevice,
  MigrationWatch,
  type PciView,
  type QmpClient,
  Qtest,
  queryRunState,
  resumeVm,
  stopVm,
} from '../../src/qemu/index.js';
import { serveNvme } from '../e2e/harness/devstate-process.js';
import { type LabServer, type LabVm, MigrationLab } from '../e2e/harness/lab.js';
import { discardPlan, type QemuPlan, QemuProcess } from '../e2e/harness/qemu-process.js';
import { settingsOf, withQtest } from '../e2e/harness/qemu-settings.js';
import { untilKilled } from './dying-manager.js';

t.setTimeout(900_000);

/** Keeps a migration in pre-copy for as long as a test wants, bytes per second. */
const SLOW = 65_536;

/** COMMAND, BARs, MSI-X table: as the guest has set them. It stands meanwhile. */
async function viewOf(qmp: QmpClient): Promise<PciView> {
  const qtest = await Qtest.attach(qmp);
  await stopVm(qmp);
  const view = await capturePciView(qtest, await findPciDevice(qmp, 'disk0'));
  await resumeVm(qmp);
  qtest.close();
  return view;
}

/** What an owner of a QEMU may have set, and devstate sets otherwise; and what it does not touch. */
async function setUp(qmp: QmpClient): Promise<void> {
  const capabilities = [
    { capability: 'auto-converge', state: true },
    { capability: 'validate-uuid', state: true },
  ];
  await qmp.execute('migrate-set-capabilities', { arguments: { capabilities } });
  const parameters = { 'downtime-limit': 777, 'max-bandwidth': 123_456_789, 'announce-rounds': 7 };
  await qmp.execute('migrate-set-parameters', { arguments: parameters });
}

/** One way for a migration to end that leaves the VM at the source. */
interface End {
  readonly name: string;
  /** When `happens` does. */
  readonly at?: Phase;
  readonly happens?: 'cancelled' | 'destination QEMU killed';
  readonly image?: string;
  readonly timeoutMs?: number;
  readonly code: RegExp;
}

/** Of a QEMU that is lost: it may be noticed at either end. */
const LOST = /^DEVSTATE_E_Q/;

t.test('what is set is put back', async (t) => {
  const lab = await MigrationLab.create(t, { replaceable: true });
  if (lab === undefined) return;
  let a = await lab.serve('a', { args: ['--size', '16M'] });
  let vm = await lab.startVm({ server: a });
  await lab.guestWrites(vm);
  await setUp(vm.qmp);
  const before = withQtest(await settingsOf(vm.qmp));
  let number = 0;

  const destinationOf = async (options: { image?: string | undefined } = {}) => {
    const image = options.image === undefined ? {} : { image: options.image };
    const server = await lab.serve(`b${number++}`, { incoming: true, ...image });
    const destination = await lab.startVm({ server, incoming: true });
    await setUp(destination.qmp);
    const end = async (): Promise<void> => {
      await destination.kill();
      await server.process.end('SIGTERM');
    };
    return { server, destination, end };
  };
  const migrationTo = (destination: LabVm, server: LabServer, slow: boolean): MigrateOptions => ({
    sourceQmp: vm.qmpPath,
    destQmp: destination.qmpPath,
    uri: `unix:${join(lab.directory, `ram-${server.name}`)}`,
    devices: [{ id: 'disk0', source: a.migrationSocket, dest: server.migrationSocket }],
    // A copy stands for storage that is replicated by other means.
    imageUnchecked: server.image === lab.image() ? [] : ['disk0'],
    downtimeMs: 300,
    timeoutMs: 60_000,
    bytesPerSecond: slow ? SLOW : 0,
  });
  const viewBefore = await viewOf(vm.qmp);
  const requireAsBefore = async (t: Test): Promise<void> => {
    t.strictSame(await settingsOf(vm.qmp), before, 'the QEMU is as its owner left it');
    t.strictSame(await viewOf(vm.qmp), viewBefore, 'and so is what it shows the guest of the device');
    await lab.guestWrites(vm);
  };

  const image = join(lab.directory, 'copy.img');
  const ends: readonly End[] = [
    { name: 'cancelled in precopy', at: 'precopy', happens: 'cancelled', code: /E_CANCELLED/ },
    { name: 'cancelled in switchover', at: 'switchover', happens: 'cancelled', code: /E_CANCELLED/ },
    { name: 'cancelled in land', at: 'land', happens: 'cancelled', code: /E_CANCELLED/ },
    { name: 'too late in precopy', at: 'precopy', timeoutMs: 1500, code: /E_TIMEOUT/ },
    {
      name: 'the destination dies in precopy',
      at: 'precopy',
      happens: 'destination QEMU killed',
      code: LOST,
    },
    {
      name: 'the destination dies in switchover',
      at: 'switchover',
      happens: 'destination QEMU killed',
      code: LOST,
    },
    { name: 'the destination dies in land', at: 'land', happens: 'destination QEMU killed', code: LOST },
    { name: 'the destination dies in commit', at: 'commit', happens: 'destination QEMU killed', code: LOST },
    { name: 'the state is refused', image, code: /E_REFUSED/ },
  ];
  for (const { name, at, happens, image, timeoutMs = 60_000, code } of ends) {
    await t.test(`migrate: ${name}`, async (t) => {
      const holder = image === undefined ? undefined : await holdCopy(lab, image);
      const { server, destination, end } = await destinationOf({ image });
      const cancel = new AbortController();
      const progress = ({ phase }: { phase: Phase }): void => {
        if (phase !== at) return;
        if (happens === 'cancelled') cancel.abort();
        if (happens === 'destination QEMU killed') destination.process.kill('SIGKILL');
      };
      const options = { ...migrationTo(destination, server, at === 'precopy'), timeoutMs };
      const hooks = { signal: cancel.signal, progress };
      const error = await migrate(options, hooks).then(
        () => undefined,
        (reason: DevstateError) => reason,
      );
      t.match(error?.code, code, `ended: ${error?.message}`);
      await requireAsBefore(t);
      await end();
      await holder?.end();
    });
  }

  await t.test('what somebody else has set meanwhile stays', async (t) => {
    const { server, destination, end } = await destinationOf();
    const cancel = new AbortController();
    let changed: Promise<unknown> | undefined;
    const progress = ({ phase }: { phase: Phase }): void => {
      if (phase !== 'precopy') return;
      const parameters = { 'max-bandwidth': 55_555 };
      changed ??= vm.qmp
        .execute('migrate-set-parameters', { arguments: parameters })
        .then(() => cancel.abort());
    };
    const hooks = { signal: cancel.signal, progress };
    await t.rejects(migrate(migrationTo(destination, server, true), hooks), /E_CANCELLED|cancelled/);
    await changed;
    const parameters = { ...(before.parameters as object), 'max-bandwidth': 55_555 };
    t.strictSame(await settingsOf(vm.qmp), { ...before, parameters });
    await setUp(vm.qmp);
    await end();
  });

  for (const [phase, named] of [
    ['precopy', true],
    ['precopy', false],
    ['switchover', true],
    ['land', true],
    ['land', false],
    ['commit', true],
  ] as const) {
    const how = named ? 'with both QEMUs named' : 'with the source named alone';
    await t.test(`migrate: killed in ${phase}, then recover ${how}`, async (t) => {
      const { server, destination, end } = await destinationOf();
      const options = migrationTo(destination, server, phase === 'precopy');
      await untilKilled({ operation: 'migrate', phase, options });
      if (!named) await end();
      const result = await recover({
        sourceQmp: vm.qmpPath,
        ...(named ? { destQmp: destination.qmpPath } : {}),
        devices: [{ id: 'disk0', source: a.migrationSocket }],
      });
      t.match(result, { status: 'recovered', running: true });
      await requireAsBefore(t);
      if (named) await end();
    });
  }

  for (const command of ['migrate-set-capabilities', 'migrate-set-parameters', 'migrate-incoming']) {
    await t.test(`migrate: killed after ${command}`, async (t) => {
      const { server, destination, end } = await destinationOf();
      const options = migrationTo(destination, server, true);
      await untilKilled({ operation: 'migrate', command, options });
      if (command === 'migrate-set-parameters') {
        // The next manager finds what the first has left.
        const other = await destinationOf();
        const cancel = new AbortController();
        const progress = ({ phase }: { phase: Phase }): void => {
          if (phase === 'precopy') cancel.abort();
        };
        const hooks = { signal: cancel.signal, progress };
        const next = migrate(migrationTo(other.destination, other.server, true), hooks);
        await t.rejects(next, { code: 'DEVSTATE_E_CANCELLED' });
        await other.end();
      } else {
        const source = [{ id: 'disk0', source: a.migrationSocket }];
        const result = await recover({
          sourceQmp: vm.qmpPath,
          destQmp: destination.qmpPath,
          devices: source,
        });
        t.match(result, { status: 'recovered', running: true });
      }
      await requireAsBefore(t);
      await end();
    });
  }

  const devices = [{ id: 'disk0', server: a.migrationSocket }];
  const replacement = async (
    mode: UpgradeQemuOptions['mode'],
    command = (all: readonly string[]): readonly string[] => all,
  ): Promise<{ plan: QemuPlan; options: UpgradeQemuOptions }> => {
    const { plan } = await lab.planUpgrade(vm, mode);
    const log = join(lab.directory, 'qemus.log');
    const [sourceQmp, timeoutMs] = [vm.qmpPath, 60_000];
    const options = { mode, sourceQmp, devices, command: command(plan.command), log, timeoutMs };
    return { plan, options };
  };
  const discard = async (mode: UpgradeQemuOptions['mode'], plan: QemuPlan): Promise<void> => {
    // With cpr-exec its sockets are those of the VM.
    if (mode === 'cpr-transfer') await discardPlan(plan);
  };

  const replaced: readonly (readonly [UpgradeQemuOptions['mode'], UpgradeQemuPhase])[] = [
    ['cpr-transfer', 'start'],
    ['cpr-transfer', 'connect'],
    ['cpr-transfer', 'switchover'],
    ['cpr-transfer', 'land'],
    ['cpr-transfer', 'commit'],
    ['cpr-exec', 'start'],
    ['cpr-exec', 'connect'],
    ['cpr-exec', 'switchover'],
    ['cpr-exec', 'land'],
  ];
  for (const [mode, phase] of replaced) {
    // From commit on the VM may run in the new one, and there is no going back.
    if (phase !== 'commit')
      await t.test(`upgrade by ${mode}: cancelled in ${phase}`, async (t) => {
        const { plan, options } = await replacement(mode);
        const cancel = new AbortController();
        const progress = (report: { phase: UpgradeQemuPhase }): void => {
          if (report.phase === phase) cancel.abort();
        };
        await t.rejects(upgradeQemu(options, { signal: cancel.signal, progress }), {
          code: 'DEVSTATE_E_CANCELLED',
        });
        await requireAsBefore(t);
        await discard(mode, plan);
      });
    await t.test(`upgrade by ${mode}: killed in ${phase}, then recover`, async (t) => {
      const { plan, options } = await replacement(mode);
      await untilKilled({ operation: 'upgradeQemu', phase, options });
      const destQmp = join(plan.directory, 'qmp');
      const result = await recover({
        sourceQmp: vm.qmpPath,
        ...(mode === 'cpr-transfer' && existsSync(destQmp) ? { destQmp } : {}),
        devices: [{ id: 'disk0', source: a.migrationSocket }],
      });
      t.match(result, { status: 'recovered', running: true });
      await requireAsBefore(t);
      await discard(mode, plan);
    });
  }

  for (const mode of ['cpr-transfer', 'cpr-exec'] as const) {
    await t.test(`upgrade by ${mode}: the new QEMU refuses`, async (t) => {
      const other = (all: readonly string[]): readonly string[] =>
        mode === 'cpr-exec' ? ['/no/such/qemu', ...all] : all.map((one) => one.replaceAll('128M', '64M'));
      const { plan, options } = await replacement(mode, other);
      await t.rejects(upgradeQemu(options), { code: 'DEVSTATE_E_QEMU_MIGRATION' });
      await requireAsBefore(t);
      await discard(mode, plan);
    });
  }

  await t.test('the source can be saved to a file by its owner', async (t) => {
    await saveToFile(vm, join(lab.directory, 'source.vm'));
    await resumeVm(vm.qmp);
    await requireAsBefore(t);
  });

  const fresh = await QemuProcess.start(lab.qemu, { paused: true, memoryMiB: 64, replaceable: true });
  t.teardown(() => fresh.kill());
  const ofFresh = withQtest(await settingsOf(fresh.qmp));
  for (const mode of ['cpr-transfer', 'cpr-exec'] as const) {
    await t.test(`upgrade by ${mode}`, async (t) => {
      ({ vm } = await lab.upgradeQemu(vm, mode));
      t.strictSame(await settingsOf(vm.qmp), ofFresh, 'the new QEMU is as its command line made it');
      await lab.guestWrites(vm);
    });
  }

  await t.test('migrate', async (t) => {
    await setUp(vm.qmp);
    const { server, destination } = await destinationOf();
    const before = {
      source: await settingsOf(vm.qmp),
      destination: withQtest(await settingsOf(destination.qmp)),
    };
    await migrate(migrationTo(destination, server, false));
    t.strictSame(await settingsOf(vm.qmp), before.source, 'the source is as its owner left it');
    t.strictSame(await settingsOf(destination.qmp), before.destination, 'and so is the destination');
    await lab.guestWrites(destination);
    await saveToFile(destination, join(lab.directory, 'destination.vm'));
    await resumeVm(destination.qmp);
    await lab.guestWrites(destination);
    ({ vm, a } = { vm: destination, a: server });
  });

  await t.test('migrate: killed when the VM has begun to run there, then recover', async (t) => {
    const { server, destination } = await destinationOf();
    const ofSource = await settingsOf(vm.qmp);
    const ofDestination = withQtest(await settingsOf(destination.qmp));
    const options = migrationTo(destination, server, false);
    await untilKilled({ operation: 'migrate', command: 'cont', options });
    const devices = [{ id: 'disk0', source: a.migrationSocket }];
    const recovering = recover({ sourceQmp: vm.qmpPath, destQmp: destination.qmpPath, devices });
    await t.rejects(recovering, { code: 'DEVSTATE_E_INCOMPATIBLE', message: /runs at the destination/ });
    t.strictSame(await settingsOf(vm.qmp), ofSource, 'the source is as its owner left it');
    t.strictSame(await settingsOf(destination.qmp), ofDestination, 'and so is the destination');
    t.same(await lab.finishAndCheck(destination), []);
    await destination.kill();
    const gone = {
      code: 'DEVSTATE_E_INCOMPATIBLE',
      message: /may have run at the destination.*--give-up-destination/,
    };
    await t.rejects(recover({ sourceQmp: vm.qmpPath, destQmp: destination.qmpPath, devices }), gone);
    await t.rejects(recover({ sourceQmp: vm.qmpPath, devices }), gone);
    t.match(await queryRunState(vm.qmp), { status: 'postmigrate' }, 'it stands');
    const givenUp = { sourceQmp: vm.qmpPath, devices, giveUpDestination: true };
    t.match(await recover(givenUp), { status: 'recovered', running: true });
  });
});

/** A snapshot as QEMU makes it, without devstate: the VM stands afterwards. */
async function saveToFile({ qmp }: LabVm, file: string): Promise<void> {
  const capabilities = [{ capability: 'events', state: true }];
  await qmp.execute('migrate-set-capabilities', { arguments: { capabilities } });
  const watch = new MigrationWatch(qmp);
  await qmp.execute('migrate', { arguments: { uri: `file:${file}` } });
  await watch.waitFor('completed', { signal: AbortSignal.timeout(60_000) });
  watch.close();
  await qmp.execute('migrate-set-capabilities', {
    arguments: { capabilities: [{ capability: 'events', state: false }] },
  });
  if ((await queryRunState(qmp)).status !== 'postmigrate') throw new Error('the VM was not saved');
}

/** A copy of the disk's image that another server has in use. */
async function holdCopy(lab: MigrationLab, image: string) {
  await copyFile(lab.image(), image);
  const [socket, migrationSocket] = [join(lab.directory, 'c.sock'), join(lab.directory, 'c.mig')];
  return serveNvme({ socket, migrationSocket, image });
}
