// SPDX-License-Identifier: Apache-2.0
/** Relays between stock QEMUs and device servers that have no migration socket, ours and libvfio-user's sample. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { findPciDevice, Qtest, type QtestCommand, resumeVm, stopVm } from '../../src/qemu/index.js';
import { configWrite } from '../../src/qemu/pci-commands.js';
import type { QemuInstallation } from '../../tools/qemu/provision.js';
import { buildSampleForQemu, SampleServer } from '../conformance/libvfio-user.js';
import { socketFolder, until } from '../support/served.js';
import { Devstate, devstate, devstateCommand } from './harness/devstate-process.js';
import { type LabServer, MigrationLab } from './harness/lab.js';
import { QemuProcess } from './harness/qemu-process.js';
import { requireQemu } from './harness/require-qemu.js';

t.setTimeout(900_000);

interface Relayed extends LabServer {
  readonly relay: Devstate;
  readonly control: string;
}

/** `devstate relay` in front of a server's socket. */
async function relay(t: Test, folder: string, name: string, server: string, options: readonly string[] = []) {
  const paths = {
    socket: join(folder, `${name}.relay`),
    migrationSocket: join(folder, `${name}.manager`),
    control: join(folder, `${name}.control`),
  };
  const process = new Devstate([
    ...['relay', '--listen', paths.socket, '--server', server, '--control', paths.control],
    ...['--migration-socket', paths.migrationSocket, '--trap', ...options],
  ]);
  t.teardown(() => process.end());
  await process.saysOnStderr(/"msg":"relaying /);
  return { ...paths, relay: process };
}

/** A `devstate serve nvme` without a migration socket. */
async function serve(lab: MigrationLab, name: string, incoming: boolean, serial = 'DISK0') {
  const socket = join(lab.directory, `${name}.sock`);
  const disk = ['--image', lab.image(), '--param', `serial=${serial}`];
  const process = new Devstate([
    ...['serve', 'nvme', '--socket', socket, ...disk],
    ...(incoming ? ['--incoming'] : []),
  ]);
  // The lab ends it, and looks at the lock of its image.
  lab.servers.push({ name, socket, migrationSocket: '', image: lab.image(), process });
  await process.saysOnStderr(/"msg":"serving /);
  return { name, socket, process };
}

async function relayed(
  t: Test,
  lab: MigrationLab,
  name: string,
  incoming = false,
  serial?: string,
): Promise<Relayed> {
  const server = await serve(lab, name, incoming, serial);
  return {
    name,
    image: lab.image(),
    process: server.process,
    ...(await relay(t, lab.directory, name, server.socket)),
  };
}

for (const { name, append } of [
  { name: 'MSI-X', append: '' },
  { name: 'INTx', append: 'pci=nomsi' },
]) {
  t.test(`there and back through relays, with ${name}`, async (t) => {
    const lab = await MigrationLab.create(t, { append });
    if (lab === undefined) return;
    let vm = await lab.startVm({ server: await relayed(t, lab, 'a') });
    await lab.guestWrites(vm);
    for (const next of ['b', 'c']) {
      const server = await relayed(t, lab, next, true);
      const destination = await lab.startVm({ server, incoming: true });
      const { code, result, stderr } = await lab.migrate(vm, destination);
      t.equal(code, 0, `to ${next}`, { stderr });
      t.match(result?.devices, [{ negotiation: { taken: null } }], 'as a stream of an unknown format');
      t.comment(`downtime ${result?.downtime.totalMs} ms, ${result?.dirtyPages} pages of the device`);
      await lab.guestWrites(destination);
      t.same(await lab.lockHolders(), [next]);
      t.same(lab.warnings(), [], 'no warning was logged');
      await vm.kill();
      vm = destination;
    }
    t.same(await lab.finishAndCheck(vm), []);
  });
}

t.test('a destination that refuses the state, and one that dies: the source continues', async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const vm = await lab.startVm({ server: await relayed(t, lab, 'a') });
  await lab.guestWrites(vm);
  const other = await relayed(t, lab, 'b', true, 'ANOTHER');
  const refused = await lab.migrate(vm, await lab.startVm({ server: other, incoming: true }));
  t.not(refused.code, 0);
  t.match(
    refused.stderr,
    /refuses .*: .*ANOTHER.*the VM runs on at the source/,
    'in the words of the server',
  );
  await lab.guestWrites(vm);

  const third = await relayed(t, lab, 'c', true);
  const migration = lab.startMigrate(vm, await lab.startVm({ server: third, incoming: true }));
  await migration.reaches('precopy');
  third.process.signal('SIGKILL');
  const died = await migration.finished;
  t.not(died.code, 0);
  t.match(died.stderr, /device server at .*c\.sock is gone.*the VM runs on at the source/);
  await lab.guestWrites(vm);
  t.same(await lab.lockHolders(), ['a']);
  t.same(await lab.finishAndCheck(vm), []);
});

t.test('ten servers, one after the other, under one VM', async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const first = await relayed(t, lab, 's0');
  const vm = await lab.startVm({ server: first });
  await lab.guestWrites(vm);
  const openFiles = () => readdirSync(`/proc/${first.relay.process.pid}/fd`).length;
  const steady = openFiles();
  const held: number[] = [];
  for (let i = 1; i <= 10; i++) {
    const { name, socket } = await serve(lab, `s${i}`, true);
    const { code, stdout, stderr } = await devstate(
      ...['relay-switch', '--control', first.control, '--server', socket, '-o', 'json'],
      ...['--qmp', vm.qmpPath, '--device', 'disk0'],
    );
    t.equal(code, 0, stderr);
    held.push((JSON.parse(stdout) as { heldMs: number }).heldMs);
    await lab.guestWrites(vm);
    t.same(await lab.lockHolders(), [name]);
  }
  await until(() => openFiles() === steady);
  const { socket, migrationSocket, control } = first;
  const where = ['--listen', socket, '--server', join(lab.directory, 's10.sock'), '--control', control];
  const next = devstateCommand('relay', ...where, '--migration-socket', migrationSocket, '--trap');
  const log = join(lab.directory, 'relays.log');
  const upgraded = await devstate('upgrade', '--control', control, '--log', log, '--', ...next);
  t.match(upgraded, { code: 0, stdout: /Status: +completed, process \d+ serves \(successor 1\)/ });
  const successor = Number(/process (\d+)/.exec(upgraded.stdout)?.[1]);
  t.teardown(() => process.kill(successor));
  t.equal(await first.relay.exited, 0, 'the old relay has ended by itself');
  await lab.guestWrites(vm);
  // The server is where the old relay was told to go last, and this one too replaces it.
  const last = await serve(lab, 's11', true);
  const prove = ['--qmp', vm.qmpPath, '--device', 'disk0'];
  const again = await devstate('relay-switch', '--control', control, '--server', last.socket, ...prove);
  t.equal(again.code, 0, again.stderr);
  await lab.guestWrites(vm);
  t.comment(`the VM waited ${held.map((ms) => ms.toFixed(1)).join(', ')} ms`);
  const refused = await devstate(
    'relay-switch',
    '--control',
    first.control,
    '--server',
    join(lab.directory, 'x'),
    '--unproven',
  );
  t.match(refused, { code: 5, stderr: /DEVSTATE_E_CONNECT/ });
  await lab.guestWrites(vm);
  t.same(await lab.finishAndCheck(vm), []);
});

t.test(
  'QEMU replaces itself, twice, and the relay in between, before a server that knows of one VMM',
  async (t) => {
    const lab = await MigrationLab.create(t, { replaceable: true });
    if (lab === undefined) return;
    const server = await relayed(t, lab, 'a');
    let vm = await lab.startVm({ server });
    await lab.guestWrites(vm);
    const openFiles = (pid = 0): number => readdirSync(`/proc/${pid}/fd`).length;
    const before = openFiles(server.process.process.pid);
    for (const mode of ['cpr-transfer', 'cpr-exec'] as const) {
      const { vm: after, result } = await lab.upgradeQemu(vm, mode);
      vm = after;
      t.comment(`${mode}: the VM stood ${result.downtime.totalMs.toFixed(0)} ms`);
      t.match(result, { status: 'completed', mode, running: true, warnings: [] });
      t.match(result.devices, [{ id: 'disk0', resets: 0, absorbed: { resets: 1 } }]);
      await lab.guestWrites(vm);
      if (mode === 'cpr-exec') break;
      const { socket, migrationSocket, control } = server;
      const where = ['--listen', socket, '--server', join(lab.directory, 'a.sock'), '--control', control];
      const next = devstateCommand('relay', ...where, '--migration-socket', migrationSocket, '--trap');
      const log = ['-o', 'json', '--log', join(lab.directory, 'relays.log')];
      const upgraded = await devstate('upgrade', '--control', control, ...log, '--', ...next);
      t.equal(upgraded.code, 0, upgraded.stderr);
      const { pid } = JSON.parse(upgraded.stdout || '{}') as { pid: number };
      t.teardown(() => process.kill(pid));
      t.equal(await server.relay.exited, 0);
    }
    t.notMatch(server.process.stderr, /the VMM has left/, 'its server has noticed nothing of all this');
    t.ok(openFiles(server.process.process.pid) <= before, 'and holds no more than before');
    t.same(await lab.lockHolders(), ['a']);
    t.same(await lab.finishAndCheck(vm), []);
  },
);

const { DEVSTATE_LIBVFIO_USER_V2: build } = process.env;
const skip = build === undefined && 'DEVSTATE_LIBVFIO_USER_V2 is not set, see docs/conformance.md';
/** I/O ports where the test puts the sample's BARs, as its firmware would: it has not declared them to be memory. */
const ALARM = 0x7000;
const MEMORY = 0x8000;
/** The sample gives the beginning of BAR 1 wherever that is read. */
const VALUE = 0x5a4b3c2d;
const IO_AND_BUS_MASTER = 0x5;

/** A VM that does nothing, with the sample device behind a relay; the test makes the accesses. */
class SampleVm {
  private constructor(
    readonly server: SampleServer,
    readonly front: Awaited<ReturnType<typeof relay>>,
    readonly vm: QemuProcess,
  ) {}

  static async start(
    t: Test,
    qemu: QemuInstallation,
    { sample, folder, name, incoming }: { sample: string; folder: string; name: string; incoming: boolean },
  ): Promise<SampleVm> {
    const server = await SampleServer.start(t, sample);
    const front = await relay(t, folder, name, server.socket, ['--no-pre-copy']);
    const vm = await QemuProcess.start(qemu, {
      memoryMiB: 64,
      ...(incoming ? { incoming } : { paused: true }),
      vfioUser: [{ id: 'sample', socket: front.socket, addr: '05.0' }],
    });
    t.teardown(() => vm.kill());
    return new SampleVm(server, front, vm);
  }

  async #run(commands: readonly QtestCommand[]): Promise<number[]> {
    const qtest = await Qtest.attach(this.vm.qmp);
    try {
      return await qtest.run(commands);
    } finally {
      qtest.close();
    }
  }

  /** As a driver: BARs, and a value. A VM that never ran would not be migrated. */
  async drive(): Promise<void> {
    await resumeVm(this.vm.qmp);
    await stopVm(this.vm.qmp);
    const where = await findPciDevice(this.vm.qmp, 'sample');
    await this.#run([
      ...configWrite(where, 0x10, 'l', ALARM),
      ...configWrite(where, 0x14, 'l', MEMORY),
      ...configWrite(where, 0x04, 'w', IO_AND_BUS_MASTER),
    ]);
    await this.write();
  }

  async write(): Promise<void> {
    await this.#run([{ operation: 'outl', address: MEMORY, value: VALUE }]);
  }

  /** What a driver reads: {@link VALUE}, where {@link write} has been. */
  async read(): Promise<number | undefined> {
    const [value] = await this.#run([{ operation: 'inl', address: MEMORY }]);
    return value;
  }
}

t.test("libvfio-user's sample server: replaced, migrated, killed", { skip }, async (t) => {
  const qemu = await requireQemu(t);
  if (qemu === undefined) return;
  const folder = socketFolder(t);
  const sample = await buildSampleForQemu(t, build ?? '');
  const from = await SampleVm.start(t, qemu, { sample, folder, name: 'a', incoming: false });
  await from.drive();
  t.equal(await from.read(), VALUE);

  const next = await SampleServer.start(t, sample);
  const { control } = from.front;
  const switched = await devstate(
    ...['relay-switch', '--control', control, '--server', next.socket],
    ...['--qmp', from.vm.qmpPath, '--device', 'sample'],
  );
  t.match(switched, { code: 0, stdout: /State: +16.0 KiB/ });
  t.equal(await from.read(), VALUE, 'another server, the same device');
  t.equal((await from.server.ended).code, 0);

  const { socket: listen, migrationSocket } = from.front;
  const where = ['--listen', listen, '--server', next.socket, '--migration-socket', migrationSocket];
  const another = devstateCommand('relay', ...where, '--control', control, '--trap', '--no-pre-copy');
  const log = ['-o', 'json', '--log', join(folder, 'relays.log')];
  const upgraded = await devstate('upgrade', '--control', control, ...log, '--', ...another);
  t.equal(upgraded.code, 0, upgraded.stderr);
  const { pid } = JSON.parse(upgraded.stdout || '{}') as { pid: number };
  t.teardown(() => process.kill(pid));
  t.equal(await from.front.relay.exited, 0);
  t.equal(await from.read(), VALUE, 'another relay, the same server, which knows nothing of it');

  const to = await SampleVm.start(t, qemu, { sample, folder, name: 'b', incoming: true });
  const devices = `sample,source=${from.front.migrationSocket},dest=${to.front.migrationSocket}`;
  const moved = await devstate(
    ...['migrate', '--source-qmp', from.vm.qmpPath, '--dest-qmp', to.vm.qmpPath, '-o', 'json'],
    ...['--uri', `unix:${join(folder, 'ram')}`, '--device', devices],
  );
  t.equal(moved.code, 0, moved.stderr);
  t.match(JSON.parse(moved.stdout || '{}'), { status: 'completed', running: false });
  t.equal(await to.read(), VALUE, 'at the destination, by the VMM that has not run before');

  await to.server.kill();
  await to.front.relay.saysOnStderr(/is gone/);
  const waiting = to.read();
  await SampleServer.start(t, sample, to.server.socket);
  t.equal(await waiting, 0, 'a new server begins anew, where the VMM has the device');
  await to.write();
  t.equal(await to.read(), VALUE);
  t.equal(to.vm.stderr.replace(/.*spurious capabilities.*\n?/g, ''), '', 'QEMU has not noticed');
});
