// SPDX-License-Identifier: Apache-2.0
/** A QEMU whose devices cannot be reached is refused before the destination is used up: by its machine, by its qtest. */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Qtest, queryRunState } from '../../src/qemu/index.js';
import { devstate } from './harness/devstate-process.js';
import { type LabServer, type LabVm, MigrationLab } from './harness/lab.js';
import { QemuProcess } from './harness/qemu-process.js';
import { requireForeign } from './harness/require-qemu.js';

t.setTimeout(600_000);

/** A machine with PCI whose host bridge has neither an ECAM nor a PC's ports. */
async function startWithoutWay(t: Test, server: LabServer, incoming: boolean): Promise<LabVm | undefined> {
  const foreign = await requireForeign(t, 'arm64');
  if (foreign === undefined) return undefined;
  const vm = await QemuProcess.start(foreign.qemu, {
    machine: 'versatilepb,audiodev=none',
    memoryMiB: 128,
    vfioUser: [{ id: 'disk0', socket: server.socket, addr: '0d.0' }],
    incoming,
    extra: ['-audiodev', 'none,id=none'],
  });
  t.teardown(() => vm.kill());
  return Object.assign(vm, { servers: [server] });
}

/** All that an operation could have changed of a QEMU that waits. */
async function stateOf({ qmp }: LabVm): Promise<unknown[]> {
  return Promise.all([
    qmp.execute('query-status'),
    qmp.execute('query-migrate'),
    qmp.execute('query-migrate-capabilities'),
    qmp.execute('query-migrate-parameters'),
  ]);
}

t.test('no way to configuration space, then none to qtest, then both', async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const vm = await lab.startVm({ server: await lab.serve('a') });
  await lab.guestWrites(vm);
  const b = await lab.serve('b', { incoming: true });

  await t.test('the destination machine has no known way', async (t) => {
    const other = await startWithoutWay(t, b, true);
    if (other === undefined) return;
    const before = await stateOf(other);
    const { code, stderr } = await lab.migrate(vm, other);
    t.equal(code, 3, stderr);
    t.match(
      stderr,
      /check: .*; device disk0: the destination QEMU \(.*: QEMU's machine "versatilepb" has no known way/,
    );
    // Each reason in one refusal: nothing is left to be found out by the next try.
    t.match(stderr, /device disk0 is at the PCI address .*; the source QEMU has the CPU /);
    t.match(stderr, /use a machine with one, such as q35, pc, or virt/);
    t.same(await stateOf(other), before, 'the destination QEMU waits as before');
    t.match(before[0], { status: 'inmigrate' });
    const ends = [vm, other].map(({ servers }) => servers[0]?.migrationSocket ?? '');
    const checked = await devstate(
      ...['check', '--source', ends[0] ?? '', '--dest', ends[1] ?? '', '--device', 'disk0'],
      ...['--source-qmp', vm.qmpPath, '--dest-qmp', other.qmpPath],
    );
    t.equal(checked.code, 3, checked.stderr);
    t.match(checked.stderr, /"versatilepb" has no known way/);
    await lab.guestWrites(vm);
    await other.kill();
  });

  await t.test('nor has the source machine', async (t) => {
    const image = join(lab.directory, 'other.img');
    const from = await startWithoutWay(t, await lab.serve('c', { image, args: ['--size', '16M'] }), false);
    const to = from && (await startWithoutWay(t, await lab.serve('d', { image, incoming: true }), true));
    if (from === undefined || to === undefined) return;
    const before = await stateOf(to);
    const { code, stderr } = await lab.migrate(from, to);
    t.equal(code, 3, stderr);
    t.match(
      stderr,
      /check: device disk0: the source QEMU \(.*: QEMU's machine "versatilepb" has no known way/,
    );
    t.same(await stateOf(to), before, 'the destination QEMU waits as before');
    t.match(await queryRunState(from.qmp), { status: 'running' });
    await Promise.all([from.kill(), to.kill()]);
  });

  const destination = await lab.startVm({ server: b, incoming: true });
  await t.test('another manager has the qtest server of the destination', async (t) => {
    const other = await Qtest.attach(destination.qmp);
    const before = await stateOf(destination);
    const { code, stderr } = await lab.migrate(vm, destination);
    other.close();
    t.not(code, 0);
    t.match(stderr, /check: cannot use QEMU's qtest server: no answer; another devstate may be connected/);
    t.same(await stateOf(destination), before, 'the destination QEMU waits as before');
    await lab.guestWrites(vm);
  });

  const { code, stderr } = await lab.migrate(vm, destination);
  t.equal(code, 0, stderr);
  await lab.guestWrites(destination);
  t.same(await lab.finishAndCheck(destination), []);
});
