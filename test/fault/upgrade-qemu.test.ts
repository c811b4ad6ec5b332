// SPDX-License-Identifier: Apache-2.0
/**
 * `devstate upgrade --qemu` that fails: the new QEMU refuses, ends, hangs at each phase, the operation is cancelled, or
 * cannot be begun. Each time the old QEMU continues with its guest, the device was not reset, and in the end it can be
 * replaced all the same.
 */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { Client, MigrationClient } from '../../src/client/index.js';
import { type UpgradeQemuOptions, type UpgradeQemuPhase, upgradeQemu } from '../../src/operations/index.js';
import { QmpClient, queryRunState } from '../../src/qemu/index.js';
import { Devstate, devstate } from '../e2e/harness/devstate-process.js';
import { type LabVm, MigrationLab } from '../e2e/harness/lab.js';
import { discardPlan, processesOf, QemuProcess } from '../e2e/harness/qemu-process.js';

t.setTimeout(900_000);

interface Fault {
  readonly name: string;
  /** What happens when this phase begins. */
  readonly at?: UpgradeQemuPhase;
  readonly signal?: 'SIGKILL' | 'SIGSTOP';
  readonly cancel?: boolean;
  /** Instead of the new QEMU's command line. */
  readonly command?: (command: readonly string[]) => readonly string[];
  readonly timeoutMs?: number;
  readonly code: string;
  readonly message: RegExp;
}

const smaller = (argument: string): string => argument.replaceAll('128M', '64M');
const ENDED =
  /the new QEMU ended with SIGKILL|QMP connection lost|qtest connection lost|migration ended as failed|Failed to connect/;
const LATE = /did not complete within/;

const FAULTS: readonly Fault[] = [
  {
    name: 'is no program',
    command: (all) => ['/no/such/qemu', ...all],
    code: 'DEVSTATE_E_QEMU_MIGRATION',
    message: /^start: .*cannot be started/,
  },
  {
    name: 'ends at once',
    command: (all) => ['false', ...all],
    code: 'DEVSTATE_E_QEMU_MIGRATION',
    message: /^start: .*exit code 1/,
  },
  {
    name: 'does not come up',
    command: (all) => ['sh', '-c', 'sleep 100', ...all],
    timeoutMs: 1500,
    code: 'DEVSTATE_E_TIMEOUT',
    message: /^start: .*did not complete/,
  },
  {
    name: 'is another machine',
    command: (all) => all.map(smaller),
    code: 'DEVSTATE_E_QEMU_MIGRATION',
    message: /^(connect|switchover|land): /,
  },
  {
    name: 'hangs before it has devices',
    at: 'connect',
    signal: 'SIGSTOP',
    timeoutMs: 3000,
    code: 'DEVSTATE_E_TIMEOUT',
    message: LATE,
  },
  ...(['connect', 'switchover', 'land', 'commit'] as const).map(
    (at): Fault => ({ name: `is killed in ${at}`, at, signal: 'SIGKILL', code: '', message: ENDED }),
  ),
  ...(['switchover', 'land'] as const).map(
    (at): Fault => ({
      name: `hangs in ${at}`,
      at,
      signal: 'SIGSTOP',
      timeoutMs: 3000,
      code: 'DEVSTATE_E_TIMEOUT',
      message: LATE,
    }),
  ),
  ...(['start', 'connect', 'switchover', 'land'] as const).map(
    (at): Fault => ({
      name: `is not wanted any more in ${at}`,
      at,
      cancel: true,
      code: 'DEVSTATE_E_CANCELLED',
      message: /cancelled/,
    }),
  ),
];

async function asManager<T>(path: string, ask: (client: MigrationClient) => Promise<T>): Promise<T> {
  const client = new MigrationClient(await Client.connect(path));
  try {
    return await ask(client);
  } finally {
    client.close();
  }
}

/** An upgrade in this process, with something that happens when a phase begins. */
async function attempt(lab: MigrationLab, vm: LabVm, fault: Fault): Promise<unknown> {
  const { plan } = await lab.planUpgrade(vm, 'cpr-transfer');
  const cancel = new AbortController();
  const options: UpgradeQemuOptions = {
    mode: 'cpr-transfer',
    sourceQmp: vm.qmpPath,
    devices: vm.servers.map(({ migrationSocket }, disk) => ({ id: `disk${disk}`, server: migrationSocket })),
    command: fault.command?.(plan.command) ?? plan.command,
    log: join(lab.directory, 'qemus.log'),
    timeoutMs: fault.timeoutMs ?? 30_000,
  };
  const progress = ({ phase }: { phase: UpgradeQemuPhase }): void => {
    if (phase !== fault.at) return;
    if (fault.cancel === true) cancel.abort();
    if (fault.signal !== undefined)
      for (const pid of processesOf(plan.directory)) process.kill(pid, fault.signal);
  };
  const failed = await upgradeQemu(options, { signal: cancel.signal, progress }).then(
    () => undefined,
    (error: unknown) => error,
  );
  await discardPlan(plan);
  if (processesOf(plan.directory).length > 0) throw new Error(`${fault.name}: the new QEMU is still there`);
  return failed;
}

t.test('the old QEMU continues', async (t) => {
  const lab = await MigrationLab.create(t, { replaceable: true });
  if (lab === undefined) return;
  const server = await lab.serve('a', { args: ['--size', '16M'] });
  const vm = await lab.startVm({ server });
  await lab.guestWrites(vm);
  const status = () => asManager(server.migrationSocket, (client) => client.nextVmm());
  const { resets } = await status();
  const fds = () => readdirSync(`/proc/${server.process.process.pid}/fd`).length;
  const before = fds();
  for (const fault of FAULTS) {
    const error = await attempt(lab, vm, fault);
    const { code, message } = error as { code: string; message: string };
    const what = `the new QEMU ${fault.name}: ${message}`;
    if (fault.code !== '') t.equal(code, fault.code, what);
    t.match(message, fault.message, what);
    t.match(message, /the VM runs on in the old QEMU/, what);
    t.match(await queryRunState(vm.qmp), { running: true }, fault.name);
    await lab.guestWrites(vm);
    t.match(await status(), { phase: 'none', first: true, resets }, fault.name);
  }
  // Connections that asked it may just have been ending, then as now.
  while (fds() > before) await new Promise((resolve) => setTimeout(resolve, 5));
  t.pass('nothing of all that is left with the server');
  const { vm: after, result } = await lab.upgradeQemu(vm, 'cpr-transfer');
  t.match(result.devices, [{ resets: 0 }]);
  await lab.guestWrites(after);
  t.same(await lab.finishAndCheck(after), []);
});

t.test('a program that cannot be executed', async (t) => {
  const lab = await MigrationLab.create(t, { replaceable: true });
  if (lab === undefined) return;
  const server = await lab.serve('a', { args: ['--size', '16M'] });
  const vm = await lab.startVm({ server });
  await lab.guestWrites(vm);
  const options: UpgradeQemuOptions = {
    mode: 'cpr-exec',
    sourceQmp: vm.qmpPath,
    devices: [{ id: 'disk0', server: server.migrationSocket }],
    command: ['/no/such/qemu', '-qmp', `unix:${vm.qmpPath}`],
    timeoutMs: 30_000,
  };
  await t.rejects(upgradeQemu(options), {
    code: 'DEVSTATE_E_QEMU_MIGRATION',
    message: /^land: QEMU could not execute the new program.*the VM runs on in the old QEMU/,
  });
  await lab.guestWrites(vm);
  t.match(await asManager(server.migrationSocket, (client) => client.nextVmm()), { phase: 'none' });
  t.same(await lab.finishAndCheck(vm), []);
});

t.test('a program that is executed with the device of another server', async (t) => {
  const lab = await MigrationLab.create(t, { replaceable: true });
  if (lab === undefined) return;
  const server = await lab.serve('a', { args: ['--size', '16M'] });
  const image = join(lab.directory, 'other.img');
  const other = await lab.serve('b', { image, args: ['--size', '16M'] });
  const vm = await lab.startVm({ server });
  await lab.guestWrites(vm);
  const { plan } = await lab.planUpgrade(vm, 'cpr-exec');
  const options: UpgradeQemuOptions = {
    mode: 'cpr-exec',
    sourceQmp: vm.qmpPath,
    devices: [{ id: 'disk0', server: server.migrationSocket }],
    command: plan.command.map((argument) => argument.replaceAll(server.socket, other.socket)),
    timeoutMs: 30_000,
  };
  vm.qmp.close();
  // There is no old one to go back to; what matters is that the guest does not run with somebody else's disk.
  await t.rejects(upgradeQemu(options), {
    code: 'DEVSTATE_E_ROLLBACK',
    message: /^land: the QEMU that answers at .* cannot have the VM: .*QEMU connected this device to/,
  });
  const qmp = await QmpClient.connect(vm.qmpPath);
  t.teardown(() => qmp.close());
  t.match(await queryRunState(qmp), { running: false });
  t.match(await asManager(server.migrationSocket, (client) => client.nextVmm()), { phase: 'awaited' });
});

/** `devstate upgrade --qemu` in a process of its own, which is killed `ms` after a phase has begun. */
async function killed(args: readonly string[], phase: UpgradeQemuPhase, ms: number): Promise<void> {
  const upgrade = new Devstate(args);
  await upgrade.saysOnStderr(new RegExp(`"phase":"${phase}"`));
  await new Promise((resolve) => setTimeout(resolve, ms));
  await upgrade.end();
}

t.test('the manager dies, and devstate recover puts an end to it', async (t) => {
  const lab = await MigrationLab.create(t, { replaceable: true });
  if (lab === undefined) return;
  const server = await lab.serve('a', { args: ['--size', '16M'] });
  let vm: LabVm = await lab.startVm({ server });
  await lab.guestWrites(vm);
  const status = () => asManager(server.migrationSocket, (client) => client.nextVmm());
  const { resets } = await status();
  const recover = async (sourceQmp: string, destQmp?: string): Promise<void> => {
    const dest = destQmp === undefined ? [] : ['--dest-qmp', destQmp];
    const device = ['--device', `disk0,source=${server.migrationSocket}`];
    const { code, stderr } = await devstate('recover', '--source-qmp', sourceQmp, ...dest, ...device);
    t.equal(code, 0, `recover: ${stderr}`);
  };
  for (const phase of ['connect', 'switchover', 'land'] as const) {
    const { plan, args } = await lab.planUpgrade(vm, 'cpr-transfer');
    await killed(args, phase, 0);
    // It may have come to its end just before.
    const there = await QmpClient.connect(join(plan.directory, 'qmp')).catch(() => undefined);
    const isThere = there !== undefined && (await queryRunState(there)).running;
    there?.close();
    if (isThere) t.comment(`${phase}: too late, the VM runs in the new QEMU`);
    else await recover(vm.qmpPath, join(plan.directory, 'qmp'));
    // Before it is connected, a new QEMU listens nowhere: no one can tell it to end.
    if (!isThere && phase !== 'connect') t.same(processesOf(plan.directory), [], 'the new QEMU has ended');
    if (isThere) vm = await lab.adoptVm(vm, plan);
    else await discardPlan(plan);
    await lab.guestWrites(vm);
    t.match(await status(), { first: true, resets }, phase);
  }
  for (const [phase, ms] of [
    ['switchover', 0],
    ['land', 0],
    ['land', 40],
    ['land', 80],
  ] as const) {
    const { plan, args } = await lab.planUpgrade(vm, 'cpr-exec');
    await killed(args, phase, ms);
    vm = await lab.adoptVm(vm, plan);
    if (!(await queryRunState(vm.qmp)).running) await recover(vm.qmpPath);
    await lab.guestWrites(vm);
    t.match(await status(), { first: true, resets }, `cpr-exec, ${phase}, ${ms} ms`);
  }
  t.same(await lab.finishAndCheck(vm), []);
});

t.test('a QEMU that cannot be replaced is refused with every reason', async (t) => {
  const lab = await MigrationLab.create(t, { disks: ['05.0', '06.0'] });
  if (lab === undefined) return;
  const [a, b] = [await lab.serve('a', { args: ['--size', '16M'] }), await lab.serve('b', { disk: 1 })];
  const vm = await QemuProcess.start(lab.qemu, {
    memoryMiB: 64,
    vfioUser: [
      { id: 'disk0', socket: a.socket, addr: '05.0' },
      { id: 'disk1', socket: b.socket, addr: '06.0' },
    ],
  });
  t.teardown(() => vm.kill());
  const refused = upgradeQemu({
    mode: 'cpr-transfer',
    sourceQmp: vm.qmpPath,
    devices: [
      { id: 'disk0', server: b.migrationSocket },
      { id: 'other', server: a.migrationSocket },
    ],
    command: ['qemu', '-qmp', 'unix:/run/new'],
    timeoutMs: 30_000,
  });
  await t.rejects(refused, {
    code: 'DEVSTATE_E_INCOMPATIBLE',
    message:
      /aux-ram-share=on.*device disk1, which is not named: .*--device disk1,server=PATH.*device other: QEMU has no PCI device/,
  });
});
