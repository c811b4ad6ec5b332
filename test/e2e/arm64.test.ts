// SPDX-License-Identifier: Apache-2.0
/**
 * An arm64 VM (machine `virt`) that writes to an NVMe disk of ours all the time is migrated: configuration space by an ECAM,
 * interrupts by the ITS, by GICv2m, and by INTx. No part of it is an x86 PC's. One of the disks is behind a relay: there
 * its server and its QEMU are replaced too. One is behind a root port, in an ECAM of 16 buses.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { MigrateResult, UpgradeQemuResult } from '../../src/operations/index.js';
import { findConfigAccess } from '../../src/qemu/index.js';
import { Devstate, devstate, serveNvme } from './harness/devstate-process.js';
import { buildInitramfs } from './harness/initramfs.js';
import { discardPlan, type QemuOptions, QemuProcess } from './harness/qemu-process.js';
import { requireForeign } from './harness/require-qemu.js';

/** Longest that all of it may take, on a slow machine. */
t.setTimeout(900_000);
/** A boot without KVM, beside other tests. */
const BOOT_MS = 120_000;

/**
 * Writes numbered blocks and reads each again, past the page cache, 64 blocks later. A block is its number in every line.
 * Ends its say with `tick` every 16 blocks, and with anything that is lost or cannot be written.
 */
const INIT = `
grep nvme /proc/interrupts | sed 's/^/irq /'
n=0
while true; do
  n=$((n + 1))
  echo "block $n" | dd of=/dev/nvme0n1 bs=4096 seek=$((n % 1024)) conv=sync,fsync 2>/dev/null || echo "EIO $n"
  echo 3 > /proc/sys/vm/drop_caches
  if [ $n -gt 64 ]; then
    m=$((n - 64))
    found="$(dd if=/dev/nvme0n1 bs=4096 skip=$((m % 1024)) count=1 2>/dev/null | head -n 1)"
    [ "$found" = "block $m" ] || echo "LOST $m"
  fi
  [ $((n % 16)) = 0 ] && echo "tick $n"
done
`;

interface Case {
  readonly name: string;
  readonly machine: string;
  readonly append?: string;
  readonly irq: RegExp;
  readonly ecam: number;
  readonly behindPort?: boolean;
  readonly relayed?: boolean;
}

const cases: readonly Case[] = [
  {
    name: 'MSI-X by the ITS, through a relay, and another server and QEMU',
    machine: 'virt,gic-version=3',
    irq: /^irq .*ITS.*nvme/,
    ecam: 0x4010000000,
    relayed: true,
  },
  {
    name: 'MSI-X by GICv2m, behind a root port',
    machine: 'virt,gic-version=2,highmem=off',
    irq: /^irq .*MSI.*nvme/,
    ecam: 0x3f000000,
    behindPort: true,
  },
  {
    name: 'INTx',
    machine: 'virt,gic-version=3',
    append: 'pci=nomsi',
    irq: /^irq .*GICv3.*nvme/,
    ecam: 0x4010000000,
  },
];

/** What a guest or its kernel says when something is wrong. */
const COMPLAINT = /^(EIO|LOST)|nvme.*(rror|timeout|reset)|nobody cared/;

interface Server {
  readonly socket: string;
  readonly migrationSocket: string;
  /** Of the relay before it. */
  readonly control: string;
}

/** Resolves when all that was written before has been read again. */
async function goesOn(vm: QemuProcess): Promise<void> {
  const from = vm.console.lines.length;
  const first = await vm.console.waitFor(/^tick (\d+)/, { from, timeoutMs: BOOT_MS });
  const then = Number(first.match[1]) + 96;
  await vm.console.waitFor(new RegExp(`^tick ${then}$`), { from, timeoutMs: BOOT_MS });
}

for (const { name, machine, append = '', irq, ecam, behindPort = false, relayed = false } of cases) {
  t.test(name, async (t) => {
    const parts = await requireForeign(t, 'arm64');
    if (parts === undefined) return;
    const initrd = await buildInitramfs({ guest: parts.guest, init: INIT });
    const directory = await mkdtemp(join(tmpdir(), 'arm-'));
    t.teardown(() => rm(directory, { recursive: true, force: true }));
    const image = join(directory, 'disk.img');
    const at = (file: string): string => join(directory, file);
    const serve = async (end: string, args: readonly string[]): Promise<Server> => {
      const paths = {
        socket: at(`${end}.sock`),
        migrationSocket: at(`${end}.mig`),
        control: at(`${end}.ctl`),
      };
      const process = await serveNvme({ ...paths, image, args: [...args] });
      t.teardown(() => process.end());
      if (!relayed) return paths;
      const front = { ...paths, socket: at(`${end}.relay`), migrationSocket: at(`${end}.manager`) };
      const relay = new Devstate([
        ...['relay', '--listen', front.socket, '--server', paths.socket, '--control', front.control],
        ...['--migration-socket', front.migrationSocket],
      ]);
      t.teardown(() => relay.end());
      await relay.saysOnStderr(/"msg":"relaying /);
      return front;
    };
    const options = (socket: string): QemuOptions => ({
      machine,
      consoleName: 'ttyAMA0',
      memoryMiB: 256,
      replaceable: relayed,
      boot: { kernel: parts.guest.kernel, initrd, append },
      before: behindPort ? ['-device', 'pcie-root-port,id=port0,chassis=1'] : [],
      vfioUser: [
        { id: 'disk0', socket, ...(behindPort ? { addr: '00.0', bus: 'port0' } : { addr: '05.0' }) },
      ],
      extra: ['-cpu', 'cortex-a57'],
    });
    const vms: QemuProcess[] = [];
    const know = (vm: QemuProcess): QemuProcess => {
      vms.push(vm);
      t.teardown(() => vm.kill());
      return vm;
    };
    const run = async (...args: string[]): Promise<string> => {
      const { code, stdout, stderr } = await devstate(...args, '-o', 'json');
      if (code !== 0) throw new Error(`devstate ${args[0]} ended with ${code}: ${stderr}`);
      return stdout;
    };
    const a = await serve('a', ['--size', '64M']);
    const source = know(await QemuProcess.start(parts.qemu, options(a.socket)));
    await source.console.waitFor(irq, { timeoutMs: BOOT_MS });
    await source.console.waitFor(/^tick 80$/, { timeoutMs: BOOT_MS });
    t.match(await findConfigAccess(source.qmp, 'disk0'), { kind: 'ecam', base: ecam });

    const b = await serve('b', ['--incoming']);
    const destination = know(await QemuProcess.start(parts.qemu, { ...options(b.socket), incoming: true }));
    const migrated = await run(
      ...['migrate', '--source-qmp', source.qmpPath, '--dest-qmp', destination.qmpPath],
      ...['--uri', `unix:${at('ram')}`],
      ...['--device', `disk0,source=${a.migrationSocket},dest=${b.migrationSocket}`],
    );
    const { running, downtime } = JSON.parse(migrated) as MigrateResult;
    t.ok(running);
    t.comment(`pause ${downtime.totalMs.toFixed(1)} ms, of it devstate ${downtime.devstateMs.toFixed(1)} ms`);
    await goesOn(destination);
    if (relayed) {
      const c = at('c.sock');
      const server = await serveNvme({
        socket: c,
        migrationSocket: at('c.mig'),
        image,
        args: ['--incoming'],
      });
      t.teardown(() => server.end());
      const owner = ['--qmp', destination.qmpPath, '--device', 'disk0'];
      await run('relay-switch', '--control', b.control, '--server', c, ...owner);
      await goesOn(destination);

      const plan = await QemuProcess.plan(parts.qemu, options(b.socket));
      const { stdout, code, stderr } = await devstate(
        ...['upgrade', '--qemu', '--source-qmp', destination.qmpPath, '--mode', 'cpr-transfer'],
        ...['--device', `disk0,server=${b.migrationSocket}`, '--log', at('qemu.log'), '-o', 'json'],
        ...['--', ...plan.command],
      );
      t.equal(code, 0, 'devstate upgrade --qemu', { stderr });
      if (code !== 0) return discardPlan(plan);
      const upgraded = JSON.parse(stdout) as UpgradeQemuResult;
      t.match(upgraded, { status: 'completed', running: true, warnings: [], devices: [{ resets: 0 }] });
      t.comment(`pause ${upgraded.downtime.totalMs.toFixed(1)} ms for another QEMU`);
      await goesOn(know(await QemuProcess.adopt(plan, upgraded.pid ?? 0)));
    }
    for (const vm of vms)
      t.same(
        vm.console.lines.filter((line) => COMPLAINT.test(line)),
        [],
      );
  });
}
