// SPDX-License-Identifier: Apache-2.0
/**
 * Whatever an operator mixes up, between two running VMs and two QEMUs that wait, is refused before anything changes, with
 * the names of what does not belong together.
 */

import { existsSync } from 'node:fs';
import { symlink } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { queryMigration, queryRunState } from '../../src/qemu/index.js';
import { devstate } from './harness/devstate-process.js';
import { type LabServer, type LabVm, MigrationLab } from './harness/lab.js';
import { QemuProcess } from './harness/qemu-process.js';

t.setTimeout(900_000);

/** Two disks, one of them behind a port that no firmware has numbered at the destination. */
const DISKS = ['05.0', 'behind-port'];

interface Scene {
  readonly lab: MigrationLab;
  /** Two VMs that run, and a destination for each. */
  readonly vms: readonly [LabVm, LabVm];
  readonly destinations: readonly [LabVm, LabVm];
}

async function setScene(t: Test): Promise<Scene | undefined> {
  const lab = await MigrationLab.create(t, { disks: DISKS });
  if (lab === undefined) return undefined;
  const serve = (vm: number, end: string, incoming: boolean): Promise<LabServer[]> =>
    Promise.all(
      DISKS.map((_, disk) =>
        lab.serve(`vm${vm}-disk${disk}-${end}`, { disk, incoming, image: imageOf(lab, vm, disk) }),
      ),
    );
  const start = async (vm: number): Promise<LabVm> =>
    lab.startVm({
      servers: await serve(vm, 'source', false),
      extra: ['-name', `vm${vm}`, '-qmp', `unix:${spareQmp(lab, vm)},server=on,wait=off`],
    });
  const vms = [await start(0), await start(1)] as const;
  for (const vm of vms) await lab.guestWrites(vm);
  const wait = async (vm: number): Promise<LabVm> =>
    lab.startVm({
      servers: await serve(vm, 'dest', true),
      incoming: true,
      extra: ['-name', `vm${vm}-arriving`],
    });
  return { lab, vms, destinations: [await wait(0), await wait(1)] };
}

/** Another QMP socket of a VM that runs. */
function spareQmp(lab: MigrationLab, vm: number): string {
  return join(lab.directory, `vm${vm}-spare.qmp`);
}

/** Of the first VM, the lab's own, so that it checks what was written. */
function imageOf(lab: MigrationLab, vm: number, disk: number): string {
  return vm === 0 ? lab.image(disk) : join(lab.directory, `other${disk}.img`);
}

function deviceArguments(sources: readonly string[], destinations: readonly string[]): string[] {
  return sources.flatMap((source, disk) => [
    '--device',
    `disk${disk},source=${source},dest=${destinations[disk]}`,
  ]);
}

const socketsOf = (vm: LabVm): string[] => vm.servers.map(({ migrationSocket }) => migrationSocket);

t.test('what does not belong together is not migrated', async (t) => {
  const scene = await setScene(t);
  if (scene === undefined) return;
  const { lab, vms, destinations } = scene;
  const [vm, other] = vms;
  const [destination, otherDestination] = destinations;
  const from = socketsOf(vm);
  const to = socketsOf(destination);
  const foreign = socketsOf(other);

  const migrate = (
    devices: readonly string[],
    { source = vm.qmpPath, dest = destination.qmpPath } = {},
  ): ReturnType<typeof devstate> =>
    devstate(
      ...['migrate', '--source-qmp', source, '--dest-qmp', dest],
      ...['--uri', `unix:${join(lab.directory, 'ram')}`, ...devices],
    );

  /** Every QEMU is as it was, and both guests continue. */
  const nothingChanged = async (t: Test): Promise<void> => {
    for (const one of vms) {
      t.match(await queryRunState(one.qmp), { status: 'running' });
      await lab.guestWrites(one);
    }
    for (const one of destinations) t.match(await queryRunState(one.qmp), { status: 'inmigrate' });
    for (const one of [...vms, ...destinations]) t.equal((await queryMigration(one.qmp)).status, 'none');
  };

  const refused = (
    name: string,
    run: () => Promise<{ code: number; stderr: string }>,
    ...words: readonly (string | RegExp)[]
  ): Promise<unknown> =>
    t.test(name, async (t) => {
      const { code, stderr } = await run();
      t.equal(code, 3, stderr);
      for (const word of words) t.match(stderr, word);
      await nothingChanged(t);
    });

  await refused(
    'the source QEMU of another VM',
    () => migrate(deviceArguments(from, to), { source: other.qmpPath }),
    /device disk0: the source QEMU .* does not talk to the server behind .*vm0-disk0-source/,
    /QEMU connected this device to \/.*vm1-disk0-source/,
  );
  await refused(
    'the source server of another VM',
    () => migrate(deviceArguments([from[0]!, foreign[1]!], to)),
    /device disk1: the source QEMU .* does not talk to the server behind .*vm1-disk1-source/,
  );
  await refused(
    'the destination server of another VM',
    () => migrate(deviceArguments(from, [to[0]!, socketsOf(otherDestination)[1]!])),
    /device disk1: the destination QEMU .* does not talk to the server behind .*vm1-disk1-dest/,
  );
  await refused(
    'two devices exchanged at both ends',
    () => migrate(deviceArguments([from[1]!, from[0]!], [to[1]!, to[0]!])),
    /device disk0: .* arrived at .*vm0-disk0-source.*, named as the source of device disk1/,
    /device disk1: .* arrived at .*vm0-disk1-source.*, named as the source of device disk0/,
    /device disk0: .* arrived at .*vm0-disk0-dest.*, named as the destination of device disk1/,
  );
  await refused(
    'two devices exchanged at the destination',
    () => migrate(deviceArguments(from, [to[1]!, to[0]!])),
    /device disk0: .* arrived at .*vm0-disk0-dest.*, named as the destination of device disk1/,
  );
  await refused(
    'source and destination of a device exchanged',
    () => migrate(deviceArguments([to[0]!, from[1]!], [from[0]!, to[1]!])),
    /disk0/,
  );
  const path = join(lab.directory, 'other-name.mig');
  await symlink(from[0]!, path);
  await refused(
    'one server by two paths',
    () => migrate(deviceArguments(from, [path, to[1]!])),
    /both lead to one server|does not talk to the server behind .*other-name/,
  );
  await refused(
    'a device that is not named',
    () => migrate(deviceArguments(from, to).slice(0, 2)),
    /the source QEMU .* has the vfio-user device disk1, which is not named.*--without disk1/,
    /the destination QEMU .* has the vfio-user device disk1, which is not named/,
  );
  await refused(
    'a device that is no vfio-user device',
    () => migrate(['--device', `root-port,source=${from[0]},dest=${to[0]}`]),
    /device root-port: the source QEMU .* has a pcie-root-port under this id, not a vfio-user-pci/,
  );
  await refused(
    'a device to be left behind that does not exist',
    () => migrate([...deviceArguments(from, to), '--without', 'disk7']),
    /--without disk7: no QEMU has a vfio-user device of this name/,
  );

  await refused(
    'a destination that works on the image of another VM',
    () =>
      migrate(deviceArguments(from, socketsOf(otherDestination)), {
        dest: otherDestination.qmpPath,
      }),
    /device disk0: the destination works on another image \(.*other0.img\) than the source \(.*disk0.img\)/,
    /--image-unchecked disk0/,
  );
  const recover = (sources: readonly string[], more: readonly string[] = []) =>
    devstate(
      ...['recover', '--source-qmp', vm.qmpPath, ...more],
      ...sources.flatMap((source, disk) => ['--device', `disk${disk},source=${source}`]),
    );
  await refused(
    'recovery with the server of another VM',
    () => recover([from[0]!, foreign[1]!]),
    /device disk1: the source QEMU .* does not talk to the server behind .*vm1-disk1-source/,
  );
  await refused('recovery without a device', () => recover([from[0]!]), /disk1, which is not named/);
  await refused(
    'recovery that would end the QEMU of another VM',
    () => recover(from, ['--dest-qmp', other.qmpPath]),
    /is not the destination's QEMU: no VM has been migrated to it \(it is running\)/,
  );

  const file = join(lab.directory, 'state');
  const prove = (one: LabVm, id: string): string[] => ['--qmp', one.qmpPath, '--device', id];
  const save = (socket: string, ...more: string[]): ReturnType<typeof devstate> =>
    devstate('save', '--migration-socket', socket, '-o', file, ...more);
  await refused(
    "the state of a VM's device, the VM not named",
    () => save(from[0]!),
    /nothing was saved: a VMM is connected to .*vm0-disk0-source.*--qmp PATH --device ID.*--unproven/,
  );
  await refused(
    "the state of another VM's device",
    () => save(foreign[0]!, ...prove(vm, 'disk0')),
    /device disk0: the VM's QEMU .* does not talk to the server behind .*vm1-disk0-source.*QEMU connected this device to .*vm0-disk0-source/,
  );
  await refused(
    'the state of another device of the VM',
    () => save(from[1]!, ...prove(vm, 'disk0')),
    /device disk0: the VM's QEMU .* does not talk to the server behind .*vm0-disk1-source/,
  );
  await refused(
    'the state of a device that the VM has not',
    () => save(from[0]!, ...prove(vm, 'disk7')),
    /device disk7: the VM's QEMU .* has no vfio-user device with this id \(it has disk0, disk1\)/,
  );
  t.notOk(existsSync(file), 'nothing was written');
  const load = (socket: string, ...more: string[]): ReturnType<typeof devstate> =>
    devstate('load', '--migration-socket', socket, file, ...more);
  await refused(
    "a state for a VM's device, the VM not named",
    () => load(from[0]!),
    /nothing was loaded: a VMM is connected to .*vm0-disk0-source/,
  );
  await refused(
    "a state for another VM's device",
    () => load(foreign[0]!, ...prove(vm, 'disk0')),
    /nothing was loaded: device disk0: .* does not talk to the server behind .*vm1-disk0-source/,
  );
  await t.test('the state of the device that is named', async (t) => {
    for (const more of [prove(vm, 'disk0'), ['--unproven']]) {
      const { code, stderr } = await save(from[0]!, ...more);
      t.equal(code, 0, stderr);
    }
    await nothingChanged(t);
  });

  const check = async (
    [source, dest]: readonly [string, string],
    ...more: string[]
  ): Promise<{ code: number; stderr: string }> => {
    const { code, stdout, stderr } = await devstate(
      ...['check', '--source', source, '--dest', dest, '--device', 'disk0', '-o', 'json', ...more],
    );
    const { reasons = [] } = stdout === '' ? {} : (JSON.parse(stdout) as { reasons?: string[] });
    return { code, stderr: [...reasons, stderr].join('\n') };
  };
  const qmps = ['--source-qmp', vm.qmpPath, '--dest-qmp', destination.qmpPath];
  await refused(
    'check: the source of another VM',
    () => check([foreign[0]!, to[0]!], ...qmps),
    /device disk0: the source QEMU .* does not talk to the server behind .*vm1-disk0-source/,
  );
  await refused(
    'check: source and destination exchanged',
    () => check([to[0]!, from[0]!], ...qmps),
    /the source QEMU .* arrived at .*vm0-disk0-source.*, named as the destination of device disk0/,
    /the destination QEMU .* arrived at .*vm0-disk0-dest.*, named as the source of device disk0/,
  );
  await refused(
    'check: a destination that works on another image',
    () =>
      check(
        [from[0]!, socketsOf(otherDestination)[0]!],
        ...['--source-qmp', vm.qmpPath, '--dest-qmp', otherDestination.qmpPath],
      ),
    /device disk0: the destination works on another image/,
  );
  await t.test('check: what belongs together', async (t) => {
    t.match(await check([from[0]!, to[0]!], ...qmps), { code: 0 });
    t.match(await check([from[0]!, to[0]!], '--dest-qmp', destination.qmpPath), { code: 0 });
    t.match(
      await check(
        [from[0]!, socketsOf(otherDestination)[0]!],
        ...['--source-qmp', vm.qmpPath, '--dest-qmp', otherDestination.qmpPath, '--image-unchecked', 'disk0'],
      ),
      { code: 0 },
    );
    t.match(await check([from[0]!, to[0]!]), { code: 2, stderr: /belong together/ });
  });

  await refused(
    'one QEMU by two sockets',
    () => migrate(deviceArguments(from, to), { dest: spareQmp(lab, 0) }),
    /source and destination are one QEMU, reached by .*qmp and .*vm0-spare.qmp/,
  );
  const uuid = '2f1c5a3e-0f55-4c1d-9f2e-3f6f3a1b7c11';
  const stranger = await QemuProcess.start(lab.qemu, { incoming: true, extra: ['-uuid', uuid] });
  t.teardown(() => stranger.kill());
  await refused(
    'a QEMU that waits for another VM',
    () => migrate(deviceArguments(from, to), { dest: stranger.qmpPath }),
    `the source VM has the UUID 00000000-0000-0000-0000-000000000000, the destination QEMU was started for ${uuid}`,
  );

  await t.test('recovery that would end a QEMU which waits for another VM', async (t) => {
    const migration = lab.startMigrate(other, otherDestination, ['--bandwidth', '2M']);
    await migration.reports(({ ramTransferred = 0 }) => ramTransferred > 0);
    migration.process.signal('SIGKILL');
    await migration.finished;
    const recoverOther = (dest: LabVm) =>
      devstate(
        ...['recover', '--source-qmp', other.qmpPath, '--dest-qmp', dest.qmpPath],
        ...foreign.flatMap((source, disk) => ['--device', `disk${disk},source=${source}`]),
      );
    const { code, stderr } = await recoverOther(destination);
    t.equal(code, 3, stderr);
    t.match(
      stderr,
      /is not the destination's QEMU: .* device disk0 is connected to .*vm1-disk0-dest.*here .*vm0-disk0-dest/,
    );
    t.match(await queryRunState(destination.qmp), { status: 'inmigrate' });
    t.match(await recoverOther(otherDestination), { code: 0 });
    await lab.guestWrites(other);
  });

  await t.test('what belongs together is', async (t) => {
    const { code, stderr } = await migrate(deviceArguments(from, to));
    t.equal(code, 0, stderr);
    t.match(stderr, 'warning: the VM is named vm0 at the source and vm0-arriving at the destination');
    await lab.guestWrites(destination);
    await lab.guestWrites(other);
    t.same(await lab.finishAndCheck(destination), []);
  });
});
