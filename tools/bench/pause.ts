// SPDX-License-Identifier: Apache-2.0
/**
 * What devstate adds to the pause of a migrating guest: its parts of `devstate migrate` with QEMU, there and back with a
 * guest that writes, and how long one is that reads all the time, beside what was expected; without QEMU the part of the device, through its migration sockets.
 */

import { join } from 'node:path';
import { Client, MigrationClient } from '../../src/client/index.js';
import {
  BlockWriter,
  GuestMachine,
  type MoveReport,
  moveGuest,
  NvmeDriver,
} from '../../src/guest-driver/index.js';
import type { Downtime, MigrateResult } from '../../src/operations/index.js';
import { type Devstate, devstate, serveNvme } from '../../test/e2e/harness/devstate-process.js';
import { buildInitramfs, compileGuestProgram } from '../../test/e2e/harness/initramfs.js';
import { QemuProcess } from '../../test/e2e/harness/qemu-process.js';
import { type GuestParts, obtainGuest, obtainQemu, type QemuInstallation } from '../qemu/provision.js';
import { type Bound, type Result, type RunOptions, type Section, summarise } from './report.js';

const BOUND: Bound = { of: 'value', at: 'most', limit: 25 };
const BLOCKS = 2048;
/** How long a guest may take to boot, ms. */
const BOOT_MS = 180_000;
/** The pause that is asked for, and what it may be longer. */
const DOWNTIME_MS = 300;
const TOLERANCE_MS = 100;

interface Machine {
  readonly qemu: QemuInstallation;
  readonly guest: GuestParts;
}

async function obtainMachine({ note }: RunOptions, without: string): Promise<Machine | undefined> {
  try {
    return { qemu: await obtainQemu(), guest: await obtainGuest() };
  } catch (error) {
    note(`no QEMU (${error instanceof Error ? error.message : error}): ${without}`);
    return undefined;
  }
}

export const pause: Section = {
  name: 'pause',
  title: 'What devstate adds to the pause, NVMe device, guest writing',
  async run(options) {
    const machine = await obtainMachine(options, "only the device's own part");
    if (machine === undefined) return summariseMoves(await moveBuiltIn(options));
    return summariseDowntimes(await migrateWithQemu(options, machine, await writing()));
  },
};

export const readPause: Section = {
  name: 'read-pause',
  title: `The pause of a guest that reads 48 MiB over and over, --downtime-ms ${DOWNTIME_MS}`,
  async run(options) {
    const machine = await obtainMachine(options, 'nothing to measure');
    return machine === undefined ? [] : summariseExpected(await migrateWithQemu(options, machine, READING));
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

/** What a guest does while it is migrated. */
interface Workload {
  readonly init: string;
  readonly files?: Readonly<Record<string, string>>;
  /** Size of the disk, as for `devstate serve`. */
  readonly size: string;
  /** A line that it prints again and again. */
  readonly sign: RegExp;
}

async function writing(): Promise<Workload> {
  return {
    files: { '/bin/blockwriter': await compileGuestProgram('blockwriter') },
    init: `blockwriter /dev/nvme0n1 ${BLOCKS} 8 64`,
    size: String(BLOCKS * 4096),
    sign: /^tick /,
  };
}

/** More than can be copied in a pause on a slow machine, over and over: the device writes all of it to the guest's memory. */
const READING: Workload = {
  init: [
    'while true; do dd if=/dev/nvme0n1 of=/dev/null bs=1M count=48 2>/dev/null; echo 1 > /proc/sys/vm/drop_caches; done &',
    'while true; do dd if=/dev/nvme0n1 of=/dev/null bs=4096 count=1 iflag=direct 2>/dev/null; echo read; sleep 0.2; done',
  ].join('\n'),
  size: '64M',
  sign: /^read/,
};

/** Each migration goes to a new QEMU and a new server. */
async function migrateWithQemu(
  { folder, rounds }: RunOptions,
  { qemu, guest }: Machine,
  { init, files = {}, size, sign }: Workload,
): Promise<MigrateResult[]> {
  const initrd = await buildInitramfs({ guest, files, init });
  const endings: (() => Promise<void>)[] = [];
  const start = async (name: string, incoming: boolean) => {
    const place = await serve(folder, name, incoming ? ['--incoming'] : ['--size', size]);
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
      const seen = await console.waitFor(sign, { from: console.lines.length, timeoutMs: BOOT_MS });
      await console.waitFor(sign, { from: seen.next });
      const destination = await start(`pause-qemu-${round}`, true);
      const { code, stdout, stderr } = await devstate(
        ...['migrate', '--source-qmp', source.vm.qmpPath, '--dest-qmp', destination.vm.qmpPath],
        ...[
          '--uri',
          `unix:${destination.vm.path('ram')}`,
          '-o',
          'json',
          '--downtime-ms',
          String(DOWNTIME_MS),
        ],
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

/** What was expected while the VM ran, and what came of it. */
function summariseExpected(results: readonly MigrateResult[]): Result[] {
  const expected = (of: (pause: NonNullable<MigrateResult['expected']>) => number): number[] =>
    results.flatMap((result) => (result.expected === undefined ? [] : [of(result.expected)]));
  const actual = (of: (downtime: Downtime) => number): number[] =>
    results.map(({ downtime }) => of(downtime));
  const totals = actual(({ totalMs }) => totalMs);
  const bound: Bound = { of: 'value', at: 'most', limit: DOWNTIME_MS + TOLERANCE_MS };
  const MIB = 2 ** 20;
  return [
    summarise('the pause', 'ms', totals),
    summarise('  the longest of all rounds', 'ms', [Math.max(...totals)], { bound }),
    summarise(
      '  expected',
      'ms',
      expected(({ totalMs }) => totalMs),
    ),
    summarise(
      "QEMU's own part",
      'ms',
      actual(({ qemuMs }) => qemuMs),
    ),
    summarise(
      '  expected',
      'ms',
      expected(({ qemuMs }) => qemuMs),
    ),
    summarise(
      'device-written pages',
      'ms',
      actual(({ pagesMs }) => pagesMs),
    ),
    summarise(
      '  expected',
      'ms',
      expected(({ pagesMs }) => pagesMs),
    ),
    summarise(
      'device-written pages',
      'MiB',
      results.map(({ bytes }) => bytes.pages / MIB),
    ),
    summarise(
      'copying them, as measured while the VM ran',
      'MB/s',
      expected(({ devices }) => (devices[0]?.copyBytesPerSecond ?? 0) / 1e6),
    ),
  ];
}
