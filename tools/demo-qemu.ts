// SPDX-License-Identifier: Apache-2.0
/**
 * The demonstration with QEMU: a Linux guest whose own nvme driver uses a disk of `devstate serve nvme`. `devstate migrate`
 * moves both, VM and device, to a second QEMU and a second server process while the guest writes with fsync.
 */

import { join } from 'node:path';
import type { MigrateResult } from '../src/operations/index.js';
import { type Devstate, devstate, serveNvme } from '../test/e2e/harness/devstate-process.js';
import { buildInitramfs, compileGuestProgram } from '../test/e2e/harness/initramfs.js';
import { QemuProcess } from '../test/e2e/harness/qemu-process.js';
import type { ConsoleMatch } from '../test/e2e/harness/serial-console.js';
import { checkWrittenImage } from '../test/e2e/harness/written-image.js';
import { bytes, count, milliseconds, parts, tell } from './demo-output.js';
import type { GuestParts, QemuInstallation } from './qemu/provision.js';

const MEMORY_MIB = 256;
const BLOCKS = 4096;
const DEPTH = 8;
const SYNC_EVERY = 64;
const DEVICE_ID = 'disk0';
/** Reports of the guest's writer, five a second, to wait for before the migration and after it. */
const TICKS = 10;

/** Runs it in `folder`. @throws what went wrong */
export async function demonstrateQemu(
  folder: string,
  qemu: QemuInstallation,
  guest: GuestParts,
): Promise<void> {
  const image = join(folder, 'disk.img');
  const servers: Devstate[] = [];
  const machines: QemuProcess[] = [];
  const serve = async (name: string, args: string[]) => {
    const socket = join(folder, name);
    const migrationSocket = `${socket}.migration`;
    const server = await serveNvme({ socket, migrationSocket, image, args });
    servers.push(server);
    return { server, socket, migrationSocket };
  };
  try {
    const initrd = await buildInitramfs({
      guest,
      files: { '/bin/blockwriter': await compileGuestProgram('blockwriter') },
      init: `uname -r | sed 's/^/kernel /'; blockwriter /dev/nvme0n1 ${BLOCKS} ${DEPTH} ${SYNC_EVERY}`,
    });
    const boot = { kernel: guest.kernel, initrd };
    const start = async (socket: string, incoming: boolean) => {
      const vfioUser = [{ id: DEVICE_ID, socket, addr: '05.0' }];
      const machine = await QemuProcess.start(qemu, { memoryMiB: MEMORY_MIB, boot, vfioUser, incoming });
      machines.push(machine);
      return machine;
    };
    const a = await serve('a', ['--size', String(BLOCKS * 4096)]);
    const source = await start(a.socket, false);
    const kernel = await source.console.waitFor(/^kernel (.*)/);
    await source.console.waitFor(/^ready /);
    tell(
      'Guest',
      `Linux ${kernel.match[1]} in QEMU ${qemu.version} (${qemu.origin}), ${MEMORY_MIB} MiB; its nvme driver uses the disk`,
    );
    const before = await ticks(source, TICKS, 0);
    tell(
      'Before',
      `${count(Number(before.match[1]))} blocks written with fsync, ${count(Number(before.match[2]))} read back`,
    );

    const b = await serve('b', ['--incoming']);
    const destination = await start(b.socket, true);
    const result = await migrate(source, destination, a.migrationSocket, b.migrationSocket);
    tellMigration(result);
    await source.kill();
    await a.server.end();

    const after = await ticks(destination, TICKS, 0);
    const gained = Number(after.match[1]) - Number(before.match[1]);
    tell(
      'After',
      `source QEMU and server are killed; ${count(gained)} more blocks; longest wait by the guest's own clock ${longestWait(destination)} ms`,
    );
    await verify(destination, image);
  } finally {
    await Promise.all([
      ...machines.map((machine) => machine.kill()),
      ...servers.map((server) => server.end()),
    ]);
  }
}

/** The last of `wanted` reports of the guest's writer. */
async function ticks(machine: QemuProcess, wanted: number, from: number): Promise<ConsoleMatch> {
  let found = await machine.console.waitFor(/^tick (\d+) (\d+) ([\d.]+)$/, { from });
  for (let i = 1; i < wanted; i++) {
    found = await machine.console.waitFor(/^tick (\d+) (\d+) ([\d.]+)$/, { from: found.next });
  }
  return found;
}

/** Longest round of the writer since the guest arrived, ms. Its clock stands still in the pause. */
function longestWait(machine: QemuProcess): number {
  return Math.max(
    ...machine.console.lines.map((line) => Number(/^tick \d+ \d+ ([\d.]+)$/.exec(line)?.[1] ?? 0)),
  );
}

async function migrate(
  source: QemuProcess,
  destination: QemuProcess,
  from: string,
  to: string,
): Promise<MigrateResult> {
  const { code, stdout, stderr } = await devstate(
    ...['migrate', '--source-qmp', source.qmpPath, '--dest-qmp', destination.qmpPath],
    ...['--uri', `unix:${destination.path('ram')}`, '--device', `${DEVICE_ID},source=${from},dest=${to}`],
    ...['-o', 'json'],
  );
  if (code !== 0) throw new Error(`devstate migrate ended with ${code}: ${stderr.trim().split('\n').at(-1)}`);
  return JSON.parse(stdout) as MigrateResult;
}

function tellMigration(result: MigrateResult): void {
  const { downtime } = result;
  const sent = result.bytes;
  tell(
    'Migrated',
    `in ${(result.totalMs / 1000).toFixed(1)} s while the guest wrote on: ${bytes(sent.ram)} of RAM by QEMU, ` +
      `${bytes(sent.precopy + sent.stop)} of device state, ${count(result.dirtyPages)} pages that the device wrote`,
  );
  const own = {
    quiesce: downtime.quiesceMs,
    capture: downtime.captureMs,
    save: downtime.saveMs,
    'dirty log': downtime.dirtyLogMs,
    load: downtime.loadMs,
    pages: downtime.pagesMs,
    replay: downtime.replayMs,
    resume: downtime.resumeMs,
  };
  tell(
    'Pause',
    `${milliseconds(downtime.totalMs)}: QEMU ${milliseconds(downtime.qemuMs)}, ` +
      `devstate ${milliseconds(downtime.devstateMs)} (${parts(own)})`,
  );
}

/** Stops the writer and compares what it says with what it saw, with the kernel's log and with the image. */
async function verify(machine: QemuProcess, image: string): Promise<void> {
  machine.console.write('dmesg');
  await machine.console.waitFor(/^dmesg-end$/);
  machine.console.write('stop');
  const done = await machine.console.waitFor(/^done (\d+) (\d+) (\d+)$/);
  const [last, first, errors] = done.match.slice(1).map(Number) as [number, number, number];
  const complaints = machine.console.lines.filter((line) =>
    /^(GAP|BAD|EIO) |^dmesg .*(nvme|I\/O error|timeout)/.test(line),
  );
  const problems = [...complaints, ...(await checkWrittenImage(image, BLOCKS, { last, first }))];
  if (errors > 0 || problems.length > 0)
    throw new Error(`${errors} errors in the guest; ${problems.join('; ')}`);
  tell(
    'Verified',
    `${count(last + 1)} blocks: no gap, no checksum error, nothing in the guest's log; ` +
      `the image holds blocks ${count(first)} to ${count(last)} as the guest wrote them`,
  );
}
