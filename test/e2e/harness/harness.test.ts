// SPDX-License-Identifier: Apache-2.0
/** The harness itself: a guest that boots, a witness that notices everything, a migration of plain RAM. */
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import {
  changeSettings,
  continueMigration,
  destinationSettings,
  MigrationWatch,
  resumeVm,
  sourceSettings,
  startIncoming,
  startMigration,
} from '../../../src/qemu/index.js';
import { mirrorsOf } from '../../../tools/qemu/debian.js';
import { buildInitramfs, compileGuestProgram, cpioArchive } from './initramfs.js';
import { QemuProcess } from './qemu-process.js';
import { requireGuest, requireQemu } from './require-qemu.js';
import { checkWrittenImage, crc32 } from './written-image.js';

t.test('cpio archives', async (t) => {
  const archive = cpioArchive([{ name: 'ab', mode: 0o100755, content: Buffer.from('hello') }]).toString(
    'latin1',
  );
  const header = (ino: number, mode: string, size: number, name: number) =>
    `070701${[ino, Number.parseInt(mode, 8), 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0]
      .map((field) => field.toString(16).padStart(8, '0'))
      .join('')}`;
  // 110 bytes of header and the name are padded to a multiple of 4, and so is the content.
  const file = `${header(1, '100755', 5, 3)}ab\0\0\0\0hello\0\0\0`;
  t.equal(archive, `${file}${header(2, '0', 0, 11)}TRAILER!!!\0\0\0\0`);
});

t.test('mirrors among the sources of apt', async (t) => {
  const uris = [
    "'http://tools.example/apt/dists/stable/InRelease' tools 0",
    "'http://mirror.example/debian/dists/bookworm/InRelease' a 0",
    "'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' b 0",
    "'http://mirror.example/debian/dists/bookworm-updates/InRelease' c 0",
    "'http://mirror.example/debian-security/dists/bookworm-security/InRelease' d 0",
  ];
  t.same(mirrorsOf(uris.join('\n')), ['http://mirror.example/debian', 'http://tools.example/apt']);
  t.same(mirrorsOf(''), []);
});

t.test('guests', async (t) => {
  const qemu = await requireQemu(t);
  const guest = qemu && (await requireGuest(t));
  if (qemu === undefined || guest === undefined) return;

  t.test('the witness writes, and notices what is wrong', async (t) => {
    const blocks = 1024;
    const image = join(t.testdir(), 'disk.img');
    writeFileSync(image, '');
    truncateSync(image, blocks * 4096);
    const initrd = await buildInitramfs({
      guest,
      files: { '/bin/blockwriter': await compileGuestProgram('blockwriter') },
      init: `blockwriter /dev/nvme0n1 ${blocks} 8 64; echo exit $?; read go\nblockwriter /dev/nvme0n1 ${blocks} 4 16`,
    });
    const began = performance.now();
    const vm = await QemuProcess.start(qemu, {
      boot: { kernel: guest.kernel, initrd },
      extra: [
        ...['-drive', `if=none,id=disk,format=raw,file=${image}`],
        ...['-device', 'nvme,drive=disk,serial=1,id=disk0'],
      ],
    });
    t.teardown(() => vm.kill());
    await vm.console.waitFor(/^init-reached/);
    t.comment(`boot to init: ${(performance.now() - began).toFixed(0)} ms`);
    await vm.console.waitFor(/^ready 1024/);
    const tick = await vm.console.waitFor(/^tick (\d{4,}) (\d+) ([\d.]+)$/);
    t.ok(Number(tick.match[2]) > 0, 'earlier blocks are verified');

    vm.console.write('prepare 65536');
    vm.console.write('readhash 4096 65536');
    const hash = await vm.console.waitFor(/^hash ([0-9a-f]{8}) 4096 65536$/);
    vm.console.write('recheck');
    const again = await vm.console.waitFor(/^rehash ([0-9a-f]{8})$/);
    t.equal(again.match[1], hash.match[1], 'the buffer is kept');
    vm.console.write('dmesg');
    await vm.console.waitFor(/^dmesg-end$/);
    t.same(
      vm.console.lines.filter((line) => /^dmesg .*(nvme|I\/O error|timeout)/.test(line)),
      [],
    );

    vm.console.write('stop');
    const done = await vm.console.waitFor(/^done (\d+) (\d+) (\d+)$/);
    const [last, first, errors] = done.match.slice(1).map(Number) as [number, number, number];
    t.equal(errors, 0);
    t.equal(first, last - blocks + 1, 'it went around');
    await vm.console.waitFor(/^exit 0$/, { from: done.next });
    t.same(await checkWrittenImage(image, blocks, { last, first }), []);
    const whole = crc32(readFileSync(image));

    // Now against a disk that loses, misplaces and spoils blocks behind the second writer's back.
    vm.console.write('go');
    await vm.console.waitFor(/^tick \d{4,} /, { from: done.next });
    const file = await open(image, 'r+');
    t.teardown(() => file.close());
    const stale = Buffer.alloc(4096);
    await file.read(stale, 0, 4096, 0);
    for (let position = 0; position < blocks; position += 2) {
      if (position % 4 === 0) await file.write(stale, 0, 4096, position * 4096);
      else await file.write('spoilt', position * 4096 + 2000);
    }
    await vm.console.waitFor(/^GAP \d+ \d+$/);
    await vm.console.waitFor(/^BAD \d+$/);
    vm.console.write('stop');
    const failed = await vm.console.waitFor(/^done (\d+) (\d+) (\d+)$/, { from: done.next });
    t.ok(Number(failed.match[3]) > 0);
    t.notMatch(crc32(readFileSync(image)), whole);
    const wrong = await checkWrittenImage(image, blocks, { last: last + 3, first: first + 3 });
    t.ok(wrong.length > 0);
    await t.rejects(vm.console.waitFor(/never/), /QEMU ended \(code 0\)/, 'the guest powers off at the end');
  });

  t.test('a guest continues in another QEMU', async (t) => {
    const initrd = await buildInitramfs({
      guest,
      init: 'n=0; while true; do n=$((n+1)); echo count $n; usleep 10000; done',
    });
    const boot = { kernel: guest.kernel, initrd };
    const [source, destination] = await Promise.all([
      QemuProcess.start(qemu, { boot }),
      QemuProcess.start(qemu, { boot, incoming: true }),
    ]);
    t.teardown(() => Promise.all([source.kill(), destination.kill()]));
    await source.console.waitFor(/^count 20$/);
    const uri = `unix:${destination.path('migration')}`;
    await changeSettings(source.qmp, sourceSettings({ downtimeMs: 300, bytesPerSecond: 0 }));
    await changeSettings(destination.qmp, destinationSettings());
    await startIncoming(destination.qmp, uri);
    const from = new MigrationWatch(source.qmp);
    const to = new MigrationWatch(destination.qmp);
    await startMigration(source.qmp, uri);
    await from.waitFor('pre-switchover');
    await continueMigration(source.qmp);
    await Promise.all([from.waitFor('completed'), to.waitFor('completed')]);
    const said = source.console.lines.length;
    await resumeVm(destination.qmp);
    const next = await destination.console.waitFor(/^count (\d+)$/);
    await destination.console.waitFor(/^count (\d+)$/, { from: next.next });
    const before = Number(
      /\d+/.exec(source.console.lines.filter((line) => /^count \d+$/.test(line)).at(-1)!)?.[0],
    );
    const after = Number(next.match[1]);
    // A line may be cut in two by the move.
    t.ok(after > before && after <= before + 2, `count ${before} here, count ${after} there`);
    t.equal(source.console.lines.length, said, 'the source says nothing more');
    t.comment(`pause: ${(to.resumed!.timestampMs - from.stopped!.timestampMs).toFixed(1)} ms`);
  });
});
