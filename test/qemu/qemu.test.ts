// SPDX-License-Identifier: Apache-2.0
/** QMP, qtest, the PCI view and migration on a real QEMU, with its own emulated NVMe and e1000e devices. */
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  awaitPciDevice,
  cancelMigration,
  capturePciView,
  changeSettings,
  continueMigration,
  destinationSettings,
  findPciDevice,
  findShownPciDevice,
  MigrationWatch,
  missingCpuFeatures,
  type PciLocation,
  PciView,
  privateFiles,
  QmpClient,
  Qtest,
  type QtestCommand,
  queryMigration,
  queryRunState,
  readConfig,
  replayPciView,
  restoreCommand,
  resumeVm,
  silenceIntx,
  sourceSettings,
  startIncoming,
  startMigration,
  stopVm,
  whyMemoryIsLost,
  withLocation,
} from '../../src/qemu/index.js';
import { configRead, configWrite } from '../../src/qemu/pci-commands.js';
import { takesArgument } from '../../src/qemu/qmp-schema.js';
import { type QemuOptions, QemuProcess } from '../e2e/harness/qemu-process.js';
import { requireQemu } from '../e2e/harness/require-qemu.js';

const BAR0 = 0xfebf0000;
const BAR0_HIGH = 0x8;
const NVME = [
  ...['-blockdev', 'driver=null-co,node-name=disk,size=1048576'],
  ...['-device', 'nvme,id=disk0,drive=disk,serial=1,addr=05.0,msix_qsize=9'],
];

const found = await requireQemu(t);
if (found !== undefined) {
  const qemu = found;

  /** A QEMU that ends with the test. */
  const start = async (t: Test, options: QemuOptions) => {
    const process = await QemuProcess.start(qemu, options);
    t.teardown(() => process.kill());
    return process;
  };
  const attach = async (t: Test, vm: QemuProcess) => {
    const qtest = await Qtest.attach(vm.qmp);
    t.teardown(() => qtest.close());
    return qtest;
  };

  t.test('QMP', async (t) => {
    const vm = await start(t, { paused: true });
    t.ok(vm.qmp.isAtLeast(10, 1), 'knows its version');
    t.ok(qemu.version.startsWith(`${vm.qmp.version.major}.${vm.qmp.version.minor}`));
    t.same(await queryRunState(vm.qmp), { status: 'prelaunch', running: false });
    const resumed = vm.qmp.waitForEvent('RESUME');
    await resumeVm(vm.qmp);
    t.ok(Math.abs((await resumed).timestampMs - Date.now()) < 60_000, "the event's time is wall-clock time");
    await stopVm(vm.qmp);
    t.same(await queryRunState(vm.qmp), { status: 'paused', running: false });
    await t.rejects(vm.qmp.execute('no-such-command'), {
      code: 'DEVSTATE_E_QMP_COMMAND',
      message: /no-such-command/,
    });
    t.equal(await takesArgument(vm.qmp, 'migrate-incoming', 'exit-on-error'), vm.qmp.isAtLeast(9, 1));
    t.equal(await takesArgument(vm.qmp, 'migrate-incoming', 'exit-on-success'), false);
    const backend = (type: string, id: string, share: boolean) => {
      const object = { 'qom-type': `memory-backend-${type}`, id, size: 4096, share };
      return vm.qmp.execute('object-add', { arguments: object });
    };
    await backend('memfd', 'shared', true);
    await backend('ram', 'no-file', false);
    t.same(await privateFiles(vm.qmp), []);
    await backend('memfd', 'private', false);
    t.same(await privateFiles(vm.qmp), ['private']);
    const same = await start(t, { paused: true });
    t.same(await missingCpuFeatures(vm.qmp, same.qmp), []);
    t.same(await whyMemoryIsLost(vm.qmp, same.qmp), []);
    const less = await start(t, { paused: true, extra: ['-cpu', 'qemu64,-sse3'] });
    t.same(await missingCpuFeatures(less.qmp, vm.qmp), [], 'more features do no harm');
    const lacking = await missingCpuFeatures(vm.qmp, less.qmp);
    t.match(lacking, [/CPU qemu64-x86_64-cpu.* lacks features .*\(CPUID 1h ECX 0x1\): .*-cpu of the source/]);
    await same.qmp.execute('migrate-set-capabilities', {
      arguments: { capabilities: [{ capability: 'x-ignore-shared', state: true }] },
    });
    t.match(await whyMemoryIsLost(vm.qmp, same.qmp), [/^x-ignore-shared is on at the destination QEMU/]);
    const inFile = async (one: QemuProcess, path: string) => {
      const object = { 'qom-type': 'memory-backend-file', id: 'ram', size: 4096, share: true };
      await one.qmp.execute('object-add', { arguments: { ...object, 'mem-path': path } });
    };
    await inFile(vm, vm.path('ram'));
    await inFile(less, less.path('ram'));
    t.same(await whyMemoryIsLost(vm.qmp, less.qmp), []);
    await less.qmp.execute('object-del', { arguments: { id: 'ram' } });
    linkSync(vm.path('ram'), less.path('link'));
    await inFile(less, less.path('link'));
    t.match(await whyMemoryIsLost(vm.qmp, less.qmp), [/have the same file as RAM \(.*\/ram\)/]);
    const first = await QmpClient.connect(vm.qmpPath);
    const second = QmpClient.connect(vm.qmpPath, { timeoutMs: 200 });
    await t.rejects(second, { code: 'DEVSTATE_E_QMP_CONNECT', message: /another QMP client/ });
    first.close();
    const pending = vm.qmp.waitForEvent('STOP');
    vm.process.kill('SIGKILL');
    await t.rejects(pending, { code: 'DEVSTATE_E_QMP_CLOSED' });
  });

  t.test('finding a device', async (t) => {
    const root = [
      '-device',
      'pcie-root-port,id=port0,addr=06.0',
      '-device',
      'virtio-net-pci,id=net0,bus=port0',
    ];
    const vm = await start(t, { paused: true, extra: [...NVME, ...root] });
    const config = { kind: 'ports', address: 0xcf8, data: 0xcfc };
    const ids = { vendorId: 0x1b36, deviceId: 0x10, interruptPin: 1 };
    const expected = { bus: 0, slot: 5, function: 0, config, ...ids };
    t.same(await findPciDevice(vm.qmp, 'disk0'), expected);
    await t.rejects(findPciDevice(vm.qmp, 'disk1'), {
      code: 'DEVSTATE_E_PCI_DEVICE',
      exitCode: 3,
      message: /"disk1" \(there are: .*disk0/,
    });
    const qtest = await attach(t, vm);
    const port = await findPciDevice(vm.qmp, 'port0');
    t.equal(await findShownPciDevice(vm.qmp, 'net0'), undefined, 'as after a reset');
    const busNumbers = async () => (await readConfig(qtest, port)).slice(0x18, 0x1b);
    const shown = (work: (at: PciLocation) => Promise<PciView>, mayNumber: boolean) =>
      withLocation({ qmp: vm.qmp, qtest }, 'net0', mayNumber, work);
    const hidden = await shown((at) => capturePciView(qtest, at), true);
    t.equal(hidden.id & 0xffff, 0x1af4, 'the bridge has numbers for as long as it takes');
    await shown((at) => replayPciView(qtest, at, hidden).then(() => hidden), true);
    t.same([...(await busNumbers())], [0, 0, 0]);
    await t.rejects(awaitPciDevice(vm.qmp, 'net1'), { code: 'DEVSTATE_E_PCI_DEVICE', message: /net1/ });
    const waiting = shown((at) => capturePciView(qtest, at), false);
    const awaited = awaitPciDevice(vm.qmp, 'net0');
    // Primary, secondary and subordinate bus numbers, as firmware would set them.
    await qtest.run(configWrite(port, 0x18, 'l', 0x00070700));
    t.match(await awaited, { bus: 7, slot: 0, vendorId: 0x1af4 });
    t.equal((await waiting).id, hidden.id);
    t.match(await findPciDevice(vm.qmp, 'net0'), { bus: 7, slot: 0, vendorId: 0x1af4 });
    await t.rejects(capturePciView(qtest, port), { code: 'DEVSTATE_E_PCI_VIEW', message: /bridges/ });
  });

  t.test('qtest', async (t) => {
    const vm = await start(t, { paused: true });
    const qtest = await attach(t, vm);
    const at = 0x100000;
    const batch: QtestCommand[] = [
      { operation: 'writel', address: at, value: 0x89abcdef },
      { operation: 'writew', address: at, value: 0x1234 },
      { operation: 'writeb', address: at + 3, value: 0x77 },
      { operation: 'readl', address: at },
      { operation: 'readw', address: at + 2 },
      { operation: 'readb', address: at + 1 },
      { operation: 'outl', address: 0xcf8, value: 0x80000000 },
      { operation: 'inl', address: 0xcfc },
    ];
    const [one, two] = await Promise.all([qtest.run(batch), qtest.run(batch.slice(3, 4))]);
    t.same(one, [0, 0, 0, 0x77ab1234, 0x77ab, 0x12, 0, 0x29c08086]);
    t.same(two, [0x77ab1234]);
    t.same(await qtest.run([]), []);
    qtest.close();
    await t.rejects(qtest.run(batch), { code: 'DEVSTATE_E_QTEST', message: /by this side/ });
    const second = await attach(t, vm);
    t.equal((await second.run(batch))[3], 0x77ab1234, 'it can be attached again');
    second.close();
    const other = await QmpClient.connect(vm.qmpPath);
    t.teardown(() => other.close());
    const third = await Qtest.attach(other);
    t.equal((await third.run(batch))[3], 0x77ab1234, 'and by another manager');
    const busy = Qtest.attach(vm.qmp, { timeoutMs: 100 });
    await t.rejects(busy, { code: 'DEVSTATE_E_QTEST', message: /another devstate may be connected/ });
    third.close();
    await t.rejects(Qtest.attach(vm.qmp, { signal: AbortSignal.abort(new Error('no')) }), /no/);
    const doomed = await attach(t, vm);
    const lost = t.rejects(doomed.run(Array(2000).fill(batch[3])), { code: 'DEVSTATE_E_QTEST' });
    vm.process.kill('SIGKILL');
    await lost;
    await t.rejects(doomed.run(batch), { code: 'DEVSTATE_E_QTEST' });
    t.notOk(vm.stderr, 'commands are not logged');
  });

  t.test('qtest where it is unusual', async (t) => {
    const directory = mkdtempSync(join(tmpdir(), 'd'));
    t.teardown(() => rmSync(directory, { recursive: true }));
    const path = join(directory, 'x'.repeat(106 - directory.length));
    const long = await start(t, { paused: true, extra: ['-qmp', `unix:${path},server=on,wait=off`] });
    const qmp = await QmpClient.connect(path);
    t.teardown(() => qmp.close());
    const qtest = await Qtest.attach(qmp);
    t.same(
      await qtest.run([{ operation: 'readb', address: 0x100000 }]),
      [0],
      'no room beside the QMP socket',
    );
    const elsewhere = /devstate-qtest-\w+/.exec(JSON.stringify(await qmp.execute('query-chardev')))?.[0];
    t.teardown(() => rmSync(join(tmpdir(), elsewhere ?? 'absent'), { recursive: true }));
    t.notOk(long.stderr);

    const shared = join(directory, 'shared');
    mkdirSync(shared);
    chmodSync(shared, 0o1777);
    const beside = join(shared, 'qmp');
    await start(t, { paused: true, extra: ['-qmp', `unix:${beside},server=on,wait=off`] });
    const exposed = await QmpClient.connect(beside);
    t.teardown(() => exposed.close());
    (await Qtest.attach(exposed)).close();
    t.same(readdirSync(shared), ['qmp'], 'not where everybody may write');
    const hidden = /devstate-qtest-\w+/.exec(JSON.stringify(await exposed.execute('query-chardev')))?.[0];
    t.teardown(() => rmSync(join(tmpdir(), hidden ?? 'absent'), { recursive: true }));
    t.equal(statSync(join(tmpdir(), hidden ?? 'absent')).mode & 0o777, 0o700);
    const own = ['-qtest', 'null', '-qtest-log', 'none'];
    const taken = await start(t, { paused: true, extra: own });
    const refused = { code: 'DEVSTATE_E_QTEST', message: /Only one instance of qtest/ };
    await t.rejects(Qtest.attach(taken.qmp), refused);
  });

  t.test('qtest of a QEMU that sees other files under the same paths', async (t) => {
    const apart = (script: string): string[] => [
      ...['unshare', ...(process.getuid?.() === 0 ? [] : ['--map-root-user'])],
      ...['--mount', '--propagation', 'private', '--', 'sh', '-c', `${script} && exec "$@"`, 'sh'],
    ];
    if (spawnSync('unshare', [...apart('true').slice(1), 'true']).status !== 0)
      return t.plan(0, 'this process may not make mount namespaces');
    const directory = mkdtempSync(join(tmpdir(), 'd'));
    t.teardown(() => rmSync(directory, { recursive: true }));
    const [inside, outside, elsewhere] = ['inside', 'outside', 'elsewhere'].map((name) =>
      join(directory, name),
    );
    for (const folder of [inside, outside, elsewhere]) mkdirSync(folder!);
    const start = async (extra: readonly string[]): Promise<QemuProcess> => {
      const command = [...apart(`mount --bind ${outside} ${inside}`), ...qemu.command];
      const one = await QemuProcess.start({ ...qemu, command }, { paused: true, memoryMiB: 64, extra });
      t.teardown(() => one.kill());
      return one;
    };
    const answers = async (path: string): Promise<void> => {
      const qmp = await QmpClient.connect(path);
      const qtest = await Qtest.attach(qmp);
      t.same(await qtest.run([{ operation: 'readb', address: 0x100000 }]), [0]);
      qtest.close();
      qmp.close();
    };
    const monitor = ['-qmp', `unix:${inside}/qmp,server=on,wait=off`];
    const first = await start(monitor);
    await answers(`${outside}/qmp`);
    t.notOk(existsSync(`${inside}/qmp.qtest`), 'not where QEMU alone would find it');
    await answers(`${outside}/qmp`);
    renameSync(`${outside}/qmp`, `${elsewhere}/qmp`);
    renameSync(`${outside}/qmp.qtest`, `${elsewhere}/qmp.qtest`);
    await answers(`${elsewhere}/qmp`);
    await first.kill();
    const wire = `socket,id=devstate-qtest-socket,path=${inside}/wire,server=on,wait=off`;
    const object = 'qtest,id=devstate-qtest,chardev=devstate-qtest-socket,log=/dev/null';
    await start([...monitor, '-chardev', wire, '-object', object]);
    await answers(`${outside}/qmp`);
  });

  t.test('the view of one QEMU, replayed in another', async (t) => {
    const [source, destination] = await Promise.all([
      start(t, { paused: true, extra: NVME }),
      start(t, { paused: true, extra: NVME }),
    ]);
    const location = await findPciDevice(source.qmp, 'disk0');
    const qtest = await attach(t, source);
    const table = BAR0_HIGH * 2 ** 32 + BAR0 + 0x2000;
    const write = (offset: number, width: 'b' | 'w' | 'l', value: number) =>
      configWrite(location, offset, width, value);
    const fresh = await capturePciView(qtest, location);
    t.same(fresh.msix?.entries, [], 'a device without addresses has no table to read');
    const { msix } = fresh;
    if (msix === undefined) return t.fail('QEMU has an NVMe device without MSI-X');
    t.same([msix.table, msix.control], [0x2000, 8]);
    await qtest.run([
      ...write(0x10, 'l', BAR0),
      ...write(0x14, 'l', BAR0_HIGH),
      ...write(0x3c, 'b', 11),
      ...write(0x04, 'w', 0x0006),
      ...Array.from({ length: 36 }, (_, word): QtestCommand => {
        const value = word % 4 === 3 ? word & 1 : 0xfee00000 + 4 * word;
        return { operation: 'writel', address: table + 4 * word, value };
      }),
      ...write(msix.offset + 2, 'w', 0x8000),
      { operation: 'outl', address: 0xcf8, value: 0x80000008 },
    ]);
    const began = performance.now();
    const view = await capturePciView(qtest, location);
    const captured = performance.now();
    t.comment(`capture: ${(captured - began).toFixed(2)} ms`);
    t.match(view, {
      id: 0x00101b36,
      command: 0x0006,
      interruptLine: 11,
      bars: [BAR0 + 4, BAR0_HIGH, 0, 0, 0, 0],
      msix: { control: 0x8008 },
    });
    t.equal(view.msix?.entries.length, 9);
    t.match(view.msix?.entries[8], { addressLow: 0xfee00080, addressHigh: 0xfee00084, data: 0xfee00088 });
    t.same(await qtest.run([{ operation: 'inl', address: 0xcf8 }]), [0x80000008], 'the latch is as it was');

    const there = await attach(t, destination);
    const before = performance.now();
    await replayPciView(there, location, PciView.parse(JSON.parse(JSON.stringify(view))));
    t.comment(`replay: ${(performance.now() - before).toFixed(2)} ms`);
    t.same(await capturePciView(there, location), view);
    const [version] = await there.run([{ operation: 'readl', address: table - 0x2000 + 8 }]);
    t.equal(version, 0x00010400, 'the device answers at its BAR (NVMe version register)');

    await silenceIntx(qtest, location, view);
    t.equal((await qtest.run(configRead(location, 4, 'w')))[1], 0x0406);
    await restoreCommand(qtest, location, view);
    t.equal((await qtest.run(configRead(location, 4, 'w')))[1], 0x0006);
  });

  t.test('a view does not go to another device', async (t) => {
    const vm = await start(t, { paused: true, extra: [...NVME, '-device', 'e1000e,id=net0,addr=06.0'] });
    const qtest = await attach(t, vm);
    const view = await capturePciView(qtest, await findPciDevice(vm.qmp, 'disk0'));
    const other = await findPciDevice(vm.qmp, 'net0');
    const replaying = replayPciView(qtest, other, view);
    await t.rejects(replaying, { code: 'DEVSTATE_E_PCI_VIEW', message: /vendor and device id/ });
    const nowhere = capturePciView(qtest, { ...other, slot: 9 });
    await t.rejects(nowhere, { code: 'DEVSTATE_E_PCI_VIEW', message: /does not answer/ });
  });

  /** Two QEMUs ready to migrate, and a watch on each. */
  const pair = async (t: Test) => {
    const [source, destination] = await Promise.all([start(t, {}), start(t, { incoming: true })]);
    const uri = `unix:${destination.path('migration')}`;
    await changeSettings(source.qmp, sourceSettings({ downtimeMs: 300 }));
    await changeSettings(destination.qmp, destinationSettings());
    await startIncoming(destination.qmp, uri);
    const watches = {
      source: new MigrationWatch(source.qmp),
      destination: new MigrationWatch(destination.qmp),
    };
    return { source, destination, uri, watches };
  };

  t.test('a migration, step by step', async (t) => {
    const { source, destination, uri, watches } = await pair(t);
    t.equal((await queryMigration(source.qmp)).status, 'none');
    await startMigration(source.qmp, uri);
    await watches.source.waitFor('pre-switchover');
    t.match(await queryRunState(source.qmp), { running: false });
    const waiting = await queryMigration(source.qmp);
    t.match(waiting, { status: 'pre-switchover', error: undefined, downtimeMs: undefined });
    t.ok(waiting.ram.totalBytes >= 256 << 20 && waiting.ram.transferredBytes > 0 && waiting.ram.passes > 0);
    // What stopped vCPUs cannot change, others still can: memory written now must arrive.
    const qtest = await attach(t, source);
    await qtest.run([{ operation: 'writel', address: 0x200000, value: 0xc0ffee }]);
    qtest.close();
    await continueMigration(source.qmp);
    await Promise.all([watches.source.waitFor('completed'), watches.destination.waitFor('completed')]);
    t.same(await queryRunState(destination.qmp), { status: 'paused', running: false });
    t.same(await queryRunState(source.qmp), { status: 'postmigrate', running: false });
    const there = await attach(t, destination);
    t.same(await there.run([{ operation: 'readl', address: 0x200000 }]), [0xc0ffee]);
    const resumed = destination.qmp.waitForEvent('RESUME');
    await resumeVm(destination.qmp);
    await resumed;
    const { stopped } = watches.source;
    if (stopped === undefined || watches.destination.resumed === undefined)
      return t.fail('STOP and RESUME missed');
    const byClock = watches.destination.resumed.timestampMs - stopped.timestampMs;
    const byArrival = watches.destination.resumed.receivedMs - stopped.receivedMs;
    t.comment(`pause: ${byClock.toFixed(1)} ms by QEMU's clock, ${byArrival.toFixed(1)} ms by ours`);
    t.ok(byClock > 0 && byArrival > 0);
    t.ok(((await queryMigration(source.qmp)).downtimeMs ?? -1) >= 0);
    t.equal(await cancelMigration(source.qmp), 'completed', 'too late to cancel');
    watches.source.close();
    watches.destination.close();
  });

  t.test('cancelled at pre-switchover, the source runs on and can migrate again', async (t) => {
    const { source, destination, uri, watches } = await pair(t);
    t.equal(await cancelMigration(source.qmp), 'none', 'nothing to cancel yet');
    await startMigration(source.qmp, uri);
    await watches.source.waitFor('pre-switchover');
    t.equal(await cancelMigration(source.qmp), 'cancelled');
    t.match(await queryRunState(source.qmp), { running: true });
    await t.rejects(watches.source.waitFor('completed'), {
      code: 'DEVSTATE_E_QEMU_MIGRATION',
      message: /ended as cancelled before completed/,
    });
    await watches.destination.waitForAny(['failed']);
    t.ok((await queryMigration(destination.qmp)).error, 'a failed destination stays and tells why');
    const next = await start(t, { incoming: true });
    await changeSettings(next.qmp, destinationSettings());
    const uriOfNext = `unix:${next.path('migration')}`;
    await startIncoming(next.qmp, uriOfNext);
    const watch = new MigrationWatch(source.qmp);
    await startMigration(source.qmp, uriOfNext);
    await watch.waitFor('pre-switchover');
    await continueMigration(source.qmp);
    await watch.waitFor('completed');
  });

  t.test('a destination that dies or was never there', async (t) => {
    const { source, destination, uri, watches } = await pair(t);
    await startMigration(source.qmp, uri);
    await watches.source.waitFor('pre-switchover');
    const lost = t.rejects(watches.destination.waitFor('completed'), { code: 'DEVSTATE_E_QMP_CLOSED' });
    await destination.kill();
    await lost;
    await continueMigration(source.qmp).catch(() => {});
    await t.rejects(watches.source.waitFor('completed'), {
      code: 'DEVSTATE_E_QEMU_MIGRATION',
      message: /ended as failed before completed: ./,
    });
    t.notOk(existsSync(destination.qmpPath));
    const running = source.qmp.waitForEvent('RESUME', { signal: AbortSignal.timeout(10_000) });
    if (!(await queryRunState(source.qmp)).running) await running;
    const again = new MigrationWatch(source.qmp);
    const refused = startMigration(source.qmp, uri).then(() => again.waitFor('pre-switchover'));
    await t.rejects(refused, { code: /DEVSTATE_E_Q/ });
    const abort = new AbortController();
    const waiting = again.waitFor('no-such-status', { signal: abort.signal });
    again.history.length = 0;
    abort.abort(new Error('enough'));
    await t.rejects(waiting);
  });
}
