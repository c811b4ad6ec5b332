// SPDX-License-Identifier: Apache-2.0
/**
 * What devstate adds to the pause of a migrating guest: its parts of `devstate migrate` with QEMU, there and back with a
 * guest that writes; without QEMU the part of the device, through its migration sockets.
 */

import { join } from 'node:path';
import { Client, MigrationClient } from '../src/client/index.js';
import {
  BlockWriter,
  GuestMachine,
  type MoveReport,
  moveGuest,
  NvmeDriver,
} from '../src/guest-driver/index.js';
import type { Downtime, MigrateResult } from '../src/operations/index.js';
import { type Devstate, devstate, serveNvme } from '../test/e2e/harness/devstate-process.js';
import { buildInitramfs, compileGuestProgram } from '../test/e2e/harness/initramfs.js';
import { QemuProcess } from '../test/e2e/harness/qemu-process.js';
import { type GuestParts, obtainGuest, obtainQemu, type QemuInstallation } from '../tools/qemu/provision.js';
import { type Bound, type Result, type RunOptions, type Section, summarise } from './report.js';

const BOUND: Bound = { of: 'value', at: 'most', limit: 25 };
const BLOCKS = 2048;

export const pause: Section = {
  name: 'pause',
  title: 'What devstate adds to the pause, NVMe device, guest writing',
  async run(options) {
    let vm: { qemu: QemuInstallation; guest: GuestParts };
    try {
      vm = { qemu: await obtainQemu(), guest: await obtainGuest() };
    } catch (error) {
      options.note(`no QEMU (${error instanceof Error ? error.message : error}): only the device's own part`);
      return summariseMoves(await moveBuiltIn(options));
    }
    return summariseDowntimes(await migrateWithQemu(options, vm.qemu, vm.guest));
  },
};

async function serve(folder: string, name: string, args: string[]) {
  const socket = join(folder, name);
  const migrationSocket = `${socket}.migration`;
  const image = join(folder, 'pause.img');
  return { socket, migrationSocket, server: await serveNvme({ socket, migrationSocket, image, args }) };
}

async function moveBuiltIn({ folder, rounds }: RunOptions): Promise<MoveReport[]> {
  const servers: Devstate[] = [];
  const place = async (name: string, args: string[]) => {
    const { socket, migrationSocket, server } = await serve(folder, name, args);
    servers.push(server);
    return { socketPath: socket, manager: new MigrationClient(await Client.connect(migrationSocket)) };
  };
  try {
    let source = await place('pause-a', ['--size', String(BLOCKS * 4096)]);
    let destination = await place('pause-b', ['--incoming']);
    const driver = await NvmeDriver.start(await GuestMachine.start(source.socketPath), { queues: 4 });
    const writer = new BlockWriter(driver, { blocks: BLOCKS, depth: 8 });
    const reports: MoveReport[] = [];
    for (let round = 0; round < rounds; round++) {
      reports.push(await moveGuest(driver, source, destination, { onRound: () => writer.progress(500) }));
      [source, destination] = [destination, source];
    }
    await writer.stop();
    driver.machine.close();
    source.manager.close();
    destination.manager.close();
    return reports;
  } finally {
    await Promise.all(servers.map((server) => server.end()));
  }
}

function summariseMoves(reports: readonly MoveReport[]): Result[] {
  const part = (of: keyof MoveReport['partsMs']) => reports.map(({ partsMs }) => partsMs[of]);
  const whole = reports.map(
    ({ partsMs: { quiesceAndSave, load, resume } }) => quiesceAndSave + load + resume,
  );
  return [
    summarise("the device's part, all of it", 'ms', whole, { bound: BOUND }),
    summarise('  quiesce and save', 'ms', part('quiesceAndSave')),
    summarise('  load', 'ms', part('load')),
    summarise('  resume', 'ms', part('resume')),
  ];
}

/** Each migration goes to a new QEMU and a new server. */
async function migrateWithQemu(
  { folder, rounds }: RunOptions,
  qemu: QemuInstallation,
  guest: GuestParts,
): Promise<MigrateResult[]> {
  const initrd = await buildInitramfs({
    guest,
    files: { '/bin/blockwriter': await compileGuestProgram('blockwriter') },
    init: `blockwriter /dev/nvme0n1 ${BLOCKS} 8 64`,
  });
  const endings: (() => Promise<void>)[] = [];
  const start = async (name: string, incoming: boolean) => {
    const place = await serve(folder, name, incoming ? ['--incoming'] : ['--size', String(BLOCKS * 4096)]);
    endings.push(() => place.server.end());
    const vfioUser = [{ id: 'disk0', socket: place.socket, addr: '05.0' }];
    const boot = { kernel: guest.kernel, initrd };
    const vm = await QemuProcess.start(qemu, { memoryMiB: 256, boot, vfioUser, incoming });
    const end = async () => {
      await vm.kill();
      await place.server.end();
    };
    endings.push(end);
    return { ...place, vm, end };
  };
  try {
    let source = await start('pause-qemu-0', false);
    const results: MigrateResult[] = [];
    for (let round = 1; round <= rounds; round++) {
      const { console } = source.vm;
      const seen = await console.waitFor(/^tick /, { from: console.lines.length });
      await console.waitFor(/^tick /, { from: seen.next });
      const destination = await start(`pause-qemu-${round}`, true);
      const { code, stdout, stderr } = await devstate(
        ...['migrate', '--source-qmp', source.vm.qmpPath, '--dest-qmp', destination.vm.qmpPath],
        ...['--uri', `unix:${destination.vm.path('ram')}`, '-o', 'json'],
        ...['--device', `disk0,source=${source.migrationSocket},dest=${destination.migrationSocket}`],
      );
      if (code !== 0) throw new Error(`devstate migrate ended with ${code}: ${stderr}`);
      results.push(JSON.parse(stdout) as MigrateResult);
      await source.end();
      source = destination;
    }
    return results;
  } finally {
    for (const end of endings.reverse()) await end();
  }
}

function summariseDowntimes(results: readonly MigrateResult[]): Result[] {
  const part = (name: keyof Downtime) => results.map(({ downtime }) => downtime[name]);
  return [
    summarise('all that devstate adds, by the clock', 'ms', part('devstateMs'), { bound: BOUND }),
    summarise('  quiesce', 'ms', part('quiesceMs')),
    summarise('  capture of the PCI view', 'ms', part('captureMs')),
    summarise('  save (beside the capture)', 'ms', part('saveMs')),
    summarise('  dirty log (beside the capture)', 'ms', part('dirtyLogMs')),
    summarise('  load', 'ms', part('loadMs')),
    summarise('  replay of the PCI view', 'ms', part('replayMs')),
    summarise('  device-written pages (beside the replay)', 'ms', part('pagesMs')),
    summarise('  resume', 'ms', part('resumeMs')),
    summarise("QEMU's own part", 'ms', part('qemuMs')),
    summarise('the whole pause', 'ms', part('totalMs')),
  ];
}
