// SPDX-License-Identifier: Apache-2.0
/**
 * What other clients of the two QEMUs do to the VM in the moments that no report marks: between the check and the start of
 * QEMU's migration, while QEMU sends the rest, and right before the VM is run at the destination.
 */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { DevstateError } from '../../src/errors.js';
import { type MigrateResult, migrate, upgradeQemu } from '../../src/operations/index.js';
import { queryRunState } from '../../src/qemu/index.js';
import { atCommand } from './harness/at-command.js';
import { Devstate } from './harness/devstate-process.js';
import { type LabServer, type LabVm, MigrationLab } from './harness/lab.js';
import { discardPlan } from './harness/qemu-process.js';

t.setTimeout(900_000);

/** Ports that devices can be plugged into, one with a device. */
const PORTS = [
  ...['-device', 'pcie-root-port,id=free,addr=1c.0,chassis=6'],
  ...['-device', 'pcie-root-port,id=spare,addr=1d.0,chassis=7'],
  ...['-device', 'pcie-root-port,id=taken,addr=1e.0,chassis=8'],
  ...['-device', 'virtio-rng-pci,id=rng0,bus=taken'],
];

interface Step {
  /** The manager's command at which it happens. */
  readonly at: { readonly where: 'source' | 'destination'; command: string; when: 'before' | 'after' };
  readonly without?: readonly string[];
  readonly happens: (ends: Readonly<Record<'source' | 'destination', LabVm>>) => Promise<unknown>;
}

t.test('other clients of the QEMUs', async (t) => {
  const lab = await MigrationLab.create(t, { reboots: true, replaceable: true });
  if (lab === undefined) return;
  let number = 0;
  let server: LabServer = await lab.serve('source', { args: ['--size', '16M'] });
  let vm: LabVm = await lab.startVm({ server, extra: PORTS });
  await lab.guestWrites(vm);

  /** Migrates while it `happens`; the VM is where it went afterwards, and its guest lives. */
  const step = async (
    t: Test,
    { at, without = [], happens }: Step,
  ): Promise<{ result?: MigrateResult; error?: DevstateError; source: LabVm }> => {
    const source = vm;
    const there = await lab.serve(`d${number++}`, { incoming: true });
    const destination = await lab.startVm({ server: there, incoming: true, extra: PORTS });
    const ends = { source, destination };
    const { where, command, when } = at;
    const happened = atCommand({ qmpPath: ends[where].qmpPath, command, when }, () => happens(ends));
    happened.catch(() => {});
    const outcome = await migrate({
      sourceQmp: source.qmpPath,
      destQmp: destination.qmpPath,
      uri: `unix:${join(lab.directory, `ram-${there.name}`)}`,
      devices: [{ id: 'disk0', source: server.migrationSocket, dest: there.migrationSocket }],
      without,
      downtimeMs: 300,
      timeoutMs: 60_000,
      bytesPerSecond: 0,
    }).then(
      (result) => ({ result }),
      (error: DevstateError) => ({ error }),
    );
    await happened;
    const hasArrived = 'result' in outcome;
    if (hasArrived) [vm, server] = [destination, there];
    const other = hasArrived ? source : destination;
    t.not((await queryRunState(other.qmp).catch(() => ({ running: false }))).running, true, 'one side alone');
    t.match(await queryRunState(vm.qmp), { running: true });
    await lab.guestWrites(vm);
    await other.kill();
    if (!hasArrived) await there.process.end('SIGTERM');
    return { ...outcome, source };
  };

  /** A device that no one names. */
  const plugIn = async (one: LabVm, id = 'late', bus = 'free'): Promise<void> => {
    const path = join(lab.directory, `${id}${number}.sock`);
    const process = new Devstate(['serve', 'counter', '--socket', path]);
    t.teardown(() => process.end());
    await process.saysOnStderr(/"msg":"serving /);
    const device = { driver: 'vfio-user-pci', id, bus, socket: { type: 'unix', path } };
    await one.qmp.execute('device_add', { arguments: device });
  };

  await t.test('a migration that failed before ours begins', async (t) => {
    const { error } = await step(t, {
      at: { where: 'source', command: 'migrate', when: 'before' },
      happens: async ({ source }) => {
        const failed = source.qmp.waitForEvent(
          ({ name, data }) => name === 'MIGRATION' && data.status === 'failed',
        );
        await source.qmp.execute('migrate', { arguments: { uri: 'unix:/nowhere' } });
        await failed;
      },
    });
    t.equal(error, undefined);
  });

  for (const command of ['migrate-incoming', 'migrate-continue']) {
    const [where, when] =
      command === 'migrate-incoming' ? (['destination', 'after'] as const) : (['source', 'before'] as const);
    await t.test(`the destination is reset, ${when} ${command}`, async (t) => {
      const { error } = await step(t, {
        at: { where, command, when },
        happens: async ({ destination }) => {
          const reset = destination.qmp.waitForEvent('RESET');
          await destination.qmp.execute('system_reset');
          await reset;
        },
      });
      t.match(error, { code: 'DEVSTATE_E_VM_CHANGED', message: /reset the VM at the destination/ });
    });
  }

  await t.test('a device is plugged in at the destination', async (t) => {
    const { error } = await step(t, {
      at: { where: 'source', command: 'migrate-continue', when: 'before' },
      happens: ({ destination }) => plugIn(destination),
    });
    const message = /land: .*destination QEMU .* has the vfio-user device late, which is not named/;
    t.match(error, { code: 'DEVSTATE_E_INCOMPATIBLE', message });
  });

  await t.test('the VM is resumed at the source when it has left', async (t) => {
    const { result, source } = await step(t, {
      at: { where: 'destination', command: 'cont', when: 'before' },
      happens: ({ source }) => source.qmp.execute('cont'),
    });
    t.match(result, {
      running: true,
      warnings: [/resumed the VM at the source .*it was stopped there again/],
    });
    t.notOk(source.console.lines.some((line) => /^(GAP|BAD|EIO) /.test(line)));
  });

  await t.test('a device of QEMU is removed', async (t) => {
    const { result } = await step(t, {
      at: { where: 'source', command: 'migrate', when: 'before' },
      happens: async ({ source }) => {
        const gone = source.qmp.waitForEvent(
          ({ name, data }) => name === 'DEVICE_DELETED' && data.device === 'rng0',
        );
        await source.qmp.execute('device_del', { arguments: { id: 'rng0' } });
        await gone;
      },
    });
    t.match(result?.warnings, [/^device rng0 \(virtio-rng-pci\) was removed .*device_del rng0/]);
  });

  await t.test('a device is plugged in while QEMU is replaced', async (t) => {
    const mode = 'cpr-transfer';
    const { plan } = await lab.planUpgrade(vm, mode);
    const added = atCommand({ qmpPath: vm.qmpPath, command: 'migrate', when: 'before' }, () => plugIn(vm));
    const replacing = upgradeQemu({
      mode,
      sourceQmp: vm.qmpPath,
      devices: [{ id: 'disk0', server: server.migrationSocket }],
      command: [...plan.command, ...PORTS],
      log: join(lab.directory, 'qemus.log'),
      timeoutMs: 60_000,
    });
    const message = /old QEMU .* has the vfio-user device late, which is not named/;
    await t.rejects(replacing, { code: 'DEVSTATE_E_INCOMPATIBLE', message });
    await added;
    await discardPlan(plan);
    await lab.guestWrites(vm);
  });

  await t.test('a device is plugged in at the source', async (t) => {
    const { error } = await step(t, {
      at: { where: 'source', command: 'migrate', when: 'before' },
      without: ['late'],
      happens: ({ source }) => plugIn(source, 'later', 'spare'),
    });
    const message =
      /precopy: .*source QEMU .* has the vfio-user device later, which is not named.*the VM runs on at the source/;
    t.match(error, { code: 'DEVSTATE_E_INCOMPATIBLE', message });
  });

  t.same(await lab.finishAndCheck(vm), []);
});
