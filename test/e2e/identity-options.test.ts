// SPDX-License-Identifier: Apache-2.0
/** A URI that leads to another QEMU, and what an operator takes upon himself: devices left behind, images and servers unproven. */

import { copyFile, mkdir } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import { queryRunState, resumeVm, startIncoming, stopVm } from '../../src/qemu/index.js';
import { devstate } from './harness/devstate-process.js';
import { type LabServer, type LabVm, MigrationLab } from './harness/lab.js';

t.setTimeout(900_000);

/** Longer than a manager has ever waited for a destination by the clock, ms. */
const LONG_MS = 6000;

const DISKS = ['05.0', '06.0'];

t.test('another QEMU at the URI, and options that leave something unproven', async (t) => {
  const lab = await MigrationLab.create(t, { disks: DISKS });
  if (lab === undefined) return;
  const serve = (name: string, images: readonly string[], incoming: boolean): Promise<LabServer[]> =>
    Promise.all(images.map((image, disk) => lab.serve(`${name}${disk}`, { disk, incoming, image })));
  const images = [lab.image(0), lab.image(1)];
  const folders = { here: join(lab.directory, 'here'), there: join(lab.directory, 'there') };
  for (const folder of Object.values(folders)) await mkdir(folder);
  let vm = await lab.startVm({ servers: await serve('source', images, false), cwd: folders.here });
  await lab.guestWrites(vm);
  const wait = async (name: string, at: readonly string[], cwd: string): Promise<LabVm> =>
    lab.startVm({ servers: await serve(name, at, true), incoming: true, cwd });

  await t.test('a URI that means another QEMU to the source than to the destination', async (t) => {
    const destination = await wait('dest', images, folders.there);
    const others = [join(lab.directory, 'other0.img'), join(lab.directory, 'other1.img')];
    for (const [disk, path] of others.entries()) await copyFile(lab.image(disk), path);
    const other = await wait('other', others, folders.here);
    await startIncoming(other.qmp, 'unix:ram');
    const { code, stderr } = await lab.migrate(vm, destination, ['--uri', 'unix:ram']);
    t.equal(code, 3, stderr);
    t.match(
      stderr,
      /sent \d+ bytes to unix:ram; the destination QEMU .*got none.*listening at unix:ram.*the VM runs on at the source/,
    );
    t.match(await queryRunState(vm.qmp), { status: 'running' });
    await lab.guestWrites(vm);
    await Promise.all([destination.kill(), other.kill()]);
  });

  await t.test('a destination that is slow to take what arrives', async (t) => {
    const destination = await wait('slow', images, folders.there);
    const migration = lab.startMigrate(vm, destination, ['--uri', 'unix:ram']);
    const standing = vm.qmp.waitForEvent(
      ({ name, data }) => name === 'MIGRATION' && data.status === 'pre-switchover',
    );
    // It swallows all that the source sends, as the buffers of a tunnel may.
    const tunnel = createServer(async (source) => {
      destination.process.kill('SIGSTOP');
      const held = new PassThrough({ highWaterMark: 2 ** 30 });
      source.pipe(held);
      await standing;
      await delay(LONG_MS);
      destination.process.kill('SIGCONT');
      const onward = connect(join(folders.there, 'ram'));
      held.pipe(onward).pipe(source);
    });
    t.teardown(() => tunnel.close());
    tunnel.listen(join(folders.here, 'ram'));
    const { code, stderr } = await migration.finished;
    t.equal(code, 0, stderr);
    await lab.guestWrites(destination);
    await vm.kill();
    vm = destination;
  });

  await t.test('a replicated disk, and one that is left behind', async (t) => {
    await stopVm(vm.qmp);
    const copy = join(lab.directory, 'copy.img');
    await copyFile(lab.image(0), copy);
    const destination = await wait('replica', [copy, lab.image(1)], folders.there);
    const [from, to] = [vm, destination].map(({ servers }) => servers[0]?.migrationSocket);
    const args = ['--source-qmp', vm.qmpPath, '--dest-qmp', destination.qmpPath];
    const migrate = (...more: string[]): ReturnType<typeof devstate> =>
      devstate(
        ...['migrate', ...args, '--uri', `unix:${join(lab.directory, 'ram')}`],
        ...['--device', `disk0,source=${from},dest=${to}`, '--without', 'disk1', ...more],
      );
    const refused = await migrate();
    t.equal(refused.code, 3, refused.stderr);
    t.match(
      refused.stderr,
      /works on another image \(.*copy.img\) than the source .*--image-unchecked disk0/,
    );
    const { code, stderr } = await migrate('--image-unchecked', 'disk0', '--unproven', 'disk0');
    t.equal(code, 0, stderr);
    await resumeVm(destination.qmp);
    await lab.guestWrites(destination);
    t.same(await queryRunState(vm.qmp), { status: 'postmigrate', running: false });
  });
});
