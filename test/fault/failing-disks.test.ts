// SPDX-License-Identifier: Apache-2.0
/**
 * Disks that are full, protected, out of quota, broken or gone: each writer and reader says why in a sentence, nothing is left
 * that looks whole, a guest gets errors and its server serves on.
 */

import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { ImageFile } from '../../src/devices/nvme/image-file.js';
import { Status } from '../../src/devices/nvme/spec/index.js';
import { GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { DirectoryExtraction, withOutput } from '../../src/operations/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { createRig, DATA, PAGE, type Rig, VENDORS, type Vendor } from '../devices/nvme/rig.js';
import { devstate, serveNvme } from '../e2e/harness/devstate-process.js';
import { savedBlob } from '../operations/files/saved.js';
import {
  lostDisk,
  quotaFolder,
  readOnlyDisk,
  skipWithout,
  smallFolder,
  unreadableFile,
  unwritableDisk,
} from '../support/failing-disks.js';
import { MAIN } from '../support/main.js';
import { serveScratch, socketFolder } from '../support/served.js';
import { Supervised } from './supervised.js';

t.setTimeout(900_000);

const KIB = 1024;
/** What a full file system, and a quota, have room for. */
const ROOM = 1024 * KIB;
/** More than that, and no two pages alike: a disk of this kind is memory that is compressed. */
const PIECE = randomBytes(2 * ROOM);

const IO_ERROR =
  /the disk, or the server that has it, reports an I\/O error; the kernel's log says more \(EIO\)/;
const NO_SPACE = /the file system is full; free space on it \(ENOSPC\)/;
const NO_QUOTA = /the disk quota is used up; free space, or have it raised \(EDQUOT\)/;
const READ_ONLY = /the file system is read-only; .* mount it for writing \(EROFS\)/;

/** Folders to which nothing of the size of `PIECE` can be written, and why. */
const FOLDERS = [
  { kind: 'full', why: NO_SPACE, make: (t: Test) => smallFolder(t, ROOM) },
  { kind: 'quota', why: NO_QUOTA, make: (t: Test) => quotaFolder(t, ROOM).folder },
  {
    kind: 'lost',
    why: IO_ERROR,
    make: (t: Test) => {
      const { folder, lose } = lostDisk(t);
      lose();
      return folder;
    },
  },
  {
    kind: 'readOnly',
    why: READ_ONLY,
    make: (t: Test) => {
      const { folder, protect } = readOnlyDisk(t);
      protect();
      return folder;
    },
  },
  {
    kind: 'unwritable',
    why: IO_ERROR,
    make: (t: Test) => {
      const { folder, fail } = unwritableDisk(t);
      fail();
      return folder;
    },
  },
] as const;

const filesIn = (folder: string): string[] => readdirSync(folder).filter((name) => name !== 'lost+found');

for (const { kind, why, make } of FOLDERS) {
  t.test(`${kind}: what is written`, { skip: skipWithout(kind) }, async (t) => {
    const folder = make(t);
    const refused = { code: 'DEVSTATE_E_OUTPUT', message: why };
    await t.rejects(
      withOutput(join(folder, 'out'), async (output) => output.write(PIECE)),
      refused,
    );
    t.throws(() => {
      const taker = new DirectoryExtraction(folder).begin('piece');
      taker.write(PIECE);
      taker.end();
    }, refused);
    t.same(filesIn(folder), [], 'nothing is left');

    const served = serveScratch(t, { stateSize: PIECE.length, chunk: 64 * KIB });
    const manager = await served.manager();
    const saved = await devstate(
      'save',
      '--migration-socket',
      served.migrationPath,
      '-o',
      join(folder, 'out'),
    );
    t.match(saved, { code: 1, stderr: /^error: cannot write .*\[DEVSTATE_E_OUTPUT\]\n$/ });
    t.match(saved.stderr, why);
    t.equal(await manager.state(), MigrationState.RUNNING, 'the device runs as before');
    const raw = join(socketFolder(t), 'raw');
    writeFileSync(raw, PIECE);
    const format = '11112222-3333-4444-5555-666677778888';
    const wrapped = await devstate(
      ...['wrap', '--format', format, '--model', 'example.org/device', raw, '-o', join(folder, 'out')],
    );
    t.match(wrapped, { code: 1, stderr: why });
    t.same(filesIn(folder), []);
  });
}

for (const { kind, why, make } of FOLDERS.filter(({ kind }) => ['lost', 'readOnly'].includes(kind))) {
  t.test(`${kind}: what is made`, { skip: skipWithout(kind) }, async (t) => {
    const folder = make(t);
    const refused = { code: 'DEVSTATE_E_OUTPUT', message: why };
    t.throws(() => new DirectoryExtraction(join(folder, 'a/b')), refused);
    const image = { path: join(folder, 'disk'), size: ROOM, lock: true };
    t.throws(() => ImageFile.open(image), { code: 'DEVSTATE_E_IMAGE_OPEN', message: why });
    const served = await devstate('serve', 'sample', '--socket', join(folder, 'socket'));
    t.match(served, { code: 1, stderr: why });
    const run = await devstate('run', '--', 'env', `TMPDIR=${folder}`, process.execPath, MAIN, 'run', 'true');
    t.match(run, { code: 1, stderr: why });
    t.match(run.stderr, /or set TMPDIR/);
  });
}

t.test('what cannot be read', { skip: skipWithout('unreadable') }, async (t) => {
  const served = serveScratch(t, { stateSize: PIECE.length, chunk: 64 * KIB });
  const manager = await served.manager();
  const own = socketFolder(t);
  const whole = join(own, 'whole');
  await devstate('save', '--migration-socket', served.migrationPath, '-o', whole);
  const path = unreadableFile(t, 'state', readFileSync(whole), ROOM);
  const alder = unreadableFile(t, 'state', await savedBlob(t), 0);
  const out = join(own, 'out');
  const format = '11112222-3333-4444-5555-666677778888';
  for (const args of [
    ['load', '--migration-socket', served.migrationPath, path],
    ['inspect', path],
    ['verify', path],
    ['diff', whole, path],
    ['convert', '--to', 'org.devstate.nvme', alder, '-o', out],
    ['wrap', '--format', format, '--model', 'example.org/device', path, '-o', out],
    // What is there is looked at before it is replaced.
    ['wrap', '--format', format, '--model', 'example.org/device', whole, '-o', alder],
    ['serve', 'nvme', '--socket', join(own, 'socket'), '--image', alder],
  ]) {
    const { code, stderr } = await devstate(...args);
    t.equal(code, 1, args.join(' '), { stderr });
    t.match(stderr, IO_ERROR);
    t.match(stderr, /^error: cannot (read|write) \/.*\[DEVSTATE_E_(INPUT|OUTPUT|IMAGE_OPEN)\]\n$/);
  }
  t.equal(await manager.state(), MigrationState.RUNNING, 'the device is as before the load');
  t.same(readdirSync(own), ['whole']);
});

/** A controller whose image is at `path`, with one queue pair. */
async function controller(t: Test, vendor: Vendor, path: string, size: number): Promise<Rig> {
  const rig = createRig({ vendor, path, size });
  t.teardown(() => rig.image.close().catch(() => {}));
  rig.useMsix(5);
  await rig.enable();
  await rig.createPair(1);
  return rig;
}

const io = async (rig: Rig, opcode: number, page: number): Promise<number> =>
  (await rig.run(1, { opcode, nsid: 1, prp1: DATA, cdw10: (page * PAGE) / 512, cdw12: PAGE / 512 - 1 }))
    .status;
const write = (rig: Rig, page: number): Promise<number> => {
  rig.guest.slice(DATA, PAGE).set(PIECE.subarray(page * PAGE, (page + 1) * PAGE));
  return io(rig, 1, page);
};
const read = (rig: Rig, page: number): Promise<number> => io(rig, 2, page);
const flush = async (rig: Rig): Promise<number> => (await rig.run(1, { opcode: 0, nsid: 1 })).status;

for (const vendor of VENDORS) {
  for (const { kind, why, make } of [
    {
      kind: 'full',
      why: NO_SPACE,
      make: (t: Test) => {
        const folder = smallFolder(t, ROOM);
        writeFileSync(join(folder, 'fill'), PIECE.subarray(0, ROOM / 2));
        return { folder, mend: () => rmSync(join(folder, 'fill')) };
      },
    },
    {
      kind: 'quota',
      why: NO_QUOTA,
      make: (t: Test) => {
        const { folder, raise } = quotaFolder(t, ROOM);
        return { folder, mend: raise };
      },
    },
  ] as const) {
    t.test(`${vendor}, ${kind}: the image`, { skip: skipWithout(kind) }, async (t) => {
      const { folder, mend } = make(t);
      const rig = await controller(t, vendor, join(folder, 'disk'), PIECE.length);
      let failed = -1;
      for (let page = 0; failed < 0 && page < PIECE.length / PAGE; page++)
        if ((await write(rig, page)) === Status.WRITE_FAULT) failed = page;
      t.ok(failed > 0, 'the first writes succeed, then the guest gets an error');
      t.match(rig.logs.join('\n'), why);
      mend();
      t.equal(await write(rig, failed), Status.SUCCESS, 'when there is room again it succeeds');
      t.equal(await flush(rig), Status.SUCCESS);
    });
  }

  t.test(`${vendor}: an image whose disk is lost`, { skip: skipWithout('lost') }, async (t) => {
    const { folder, lose } = lostDisk(t);
    const rig = await controller(t, vendor, join(folder, 'disk'), PIECE.length);
    t.equal(await write(rig, 0), Status.SUCCESS);
    lose();
    t.equal(await write(rig, 0), Status.WRITE_FAULT);
    t.equal(await read(rig, 0), Status.UNRECOVERED_READ_ERROR);
    t.equal(await flush(rig), Status.WRITE_FAULT);
    const said = rig.logs.filter((line) => IO_ERROR.test(line)).join('\n');
    for (const verb of ['write', 'read', 'flush'])
      t.match(said, new RegExp(`error: a command of the guest has failed: cannot ${verb} ${folder}/disk: `));
  });

  t.test(`${vendor}: an image that is protected`, { skip: skipWithout('readOnly') }, async (t) => {
    const { folder, protect } = readOnlyDisk(t);
    const rig = await controller(t, vendor, join(folder, 'disk'), PIECE.length);
    t.equal(await write(rig, 0), Status.SUCCESS);
    protect();
    t.equal(await write(rig, 1), Status.WRITE_FAULT);
    t.equal(await read(rig, 0), Status.SUCCESS, 'it can be read');
    t.match(rig.logs.join('\n'), READ_ONLY);
  });

  t.test(
    `${vendor}: an image of which a part cannot be read`,
    { skip: skipWithout('unreadable') },
    async (t) => {
      const rig = await controller(t, vendor, unreadableFile(t, 'disk', PIECE, ROOM), PIECE.length);
      t.equal(await read(rig, 0), Status.SUCCESS);
      t.ok(Buffer.from(rig.guest.slice(DATA, PAGE)).equals(PIECE.subarray(0, PAGE)));
      t.equal(await read(rig, ROOM / PAGE), Status.UNRECOVERED_READ_ERROR);
      t.match(rig.logs.join('\n'), IO_ERROR);
      t.equal(await read(rig, 1), Status.SUCCESS, 'and what can be read is');
    },
  );

  t.test(`${vendor}: a flush that has failed`, { skip: skipWithout('unwritable') }, async (t) => {
    const { folder, fail, mend } = unwritableDisk(t);
    const path = join(folder, 'disk');
    const rig = await controller(t, vendor, path, PIECE.length);
    t.equal(await write(rig, 0), Status.SUCCESS);
    t.equal(await flush(rig), Status.SUCCESS);
    fail();
    t.equal(await write(rig, 1), Status.SUCCESS, 'the kernel has it in memory');
    t.equal(await flush(rig), Status.WRITE_FAULT);
    mend();
    // Linux says that it has succeeded, and has written nothing: a driver that tries again must not believe it.
    t.equal(await flush(rig), Status.WRITE_FAULT, 'what was lost stays lost');
    t.match(
      rig.logs.join('\n'),
      /cannot flush .* \(EIO\); .* may be lost, .*: end the VM, check the image, and start/,
    );
    t.equal(await write(rig, 1), Status.SUCCESS);
    await rig.device.quiesce();
    await t.rejects(rig.device.releaseExclusive?.() ?? Promise.resolve(), {
      code: 'DEVSTATE_E_SYSTEM',
      message: IO_ERROR,
    });

    const { files, data } = rig.image.exportFiles();
    const [entry] = files;
    const next = ImageFile.open({ path, lock: false });
    next.importFiles(() => entry!.fd, JSON.parse(JSON.stringify(data)));
    await t.rejects(next.flush(), { message: IO_ERROR }, 'a successor knows of it');
    next.relinquish();
  });
}

t.test(
  'a guest whose disk is lost: the server says so a few times, and serves',
  { skip: skipWithout('lost') },
  async (t) => {
    const { folder, lose } = lostDisk(t);
    const own = socketFolder(t);
    const socket = join(own, 'socket');
    const options = { socket, migrationSocket: join(own, 'manager'), image: join(folder, 'disk') };
    const server = await serveNvme({ ...options, args: ['--size', '4M'] });
    t.teardown(() => server.end());
    const machine = await GuestMachine.start(socket);
    t.teardown(() => machine.close());
    const driver = await NvmeDriver.start(machine);
    const buffer = driver.allocate(PAGE);
    await driver.write(0, buffer);
    lose();
    for (let lba = 0; lba < 300; lba++)
      await t.rejects(driver.write(lba, buffer), { code: 'DEVSTATE_E_GUEST_COMMAND' });
    await driver.shutdown();
    await server.end('SIGTERM');
    t.equal(await server.exited, 1, 'the image could not be flushed at the end');
    const lines = server.stderr.split('\n').filter((line) => line.includes('EIO'));
    t.ok(lines.length > 1 && lines.length < 20, `${lines.length} lines for 300 commands`);
  },
);

t.test('a flush that has failed, and a crash', { skip: skipWithout('unwritable') }, async (t) => {
  const { folder, fail, mend } = unwritableDisk(t);
  const server = new Supervised(t);
  const image = join(folder, 'disk');
  server.start([MAIN, 'serve', 'nvme', '--socket', server.socket, '--image', image, '--size', '4M']);
  await server.serving();
  const machine = await GuestMachine.start(server.socket);
  t.teardown(() => machine.close());
  const driver = await NvmeDriver.start(machine);
  const buffer = driver.allocate(PAGE);
  buffer.fill(PIECE.subarray(0, PAGE));
  await driver.write(0, buffer);
  await driver.flush();
  fail();
  await driver.write(8, buffer);
  await t.rejects(driver.flush(), { code: 'DEVSTATE_E_GUEST_COMMAND' });
  mend();
  server.restart();
  await server.serving(2);
  await t.rejects(driver.flush(), { code: 'DEVSTATE_E_GUEST_COMMAND' }, 'the next server knows of it');
  await driver.shutdown();
  machine.close();
  await server.stop();
});
