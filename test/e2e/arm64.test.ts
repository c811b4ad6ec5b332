// SPDX-License-Identifier: Apache-2.0
/**
 * An arm64 VM (machine `virt`) that writes to an NVMe disk of ours all the time is migrated: configuration space by an ECAM,
 * interrupts by the ITS, by GICv2m, and by INTx. No part of it is an x86 PC's.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { MigrateResult } from '../../src/operations/index.js';
import { findConfigAccess } from '../../src/qemu/index.js';
import { devstate, serveNvme } from './harness/devstate-process.js';
import { buildInitramfs } from './harness/initramfs.js';
import { type QemuOptions, QemuProcess } from './harness/qemu-process.js';
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

const cases = [
  {
    name: 'MSI-X by the ITS',
    machine: 'virt,gic-version=3',
    append: '',
    irq: /^irq .*ITS.*nvme/,
    ecam: 0x4010000000,
  },
  {
    name: 'MSI-X by GICv2m',
    machine: 'virt,gic-version=2,highmem=off',
    append: '',
    irq: /^irq .*MSI.*nvme/,
    ecam: 0x3f000000,
  },
  {
    name: 'INTx',
    machine: 'virt,gic-version=3',
    append: 'pci=nomsi',
    irq: /^irq .*GICv3.*nvme/,
    ecam: 0x4010000000,
  },
];

for (const { name, machine, append, irq, ecam } of cases) {
  t.test(name, async (t) => {
    const parts = await requireForeign(t, 'arm64');
    if (parts === undefined) return;
    const initrd = await buildInitramfs({ guest: parts.guest, init: INIT });
    const directory = await mkdtemp(join(tmpdir(), 'arm-'));
    t.teardown(() => rm(directory, { recursive: true, force: true }));
    const serve = async (end: string, args: readonly string[]) => {
      const paths = {
        socket: join(directory, `${end}.sock`),
        migrationSocket: join(directory, `${end}.mig`),
      };
      const process = await serveNvme({ ...paths, image: join(directory, 'disk.img'), args: [...args] });
      t.teardown(() => process.end());
      return paths;
    };
    const start = async (socket: string, more: Partial<QemuOptions>): Promise<QemuProcess> => {
      const vm = await QemuProcess.start(parts.qemu, {
        machine,
        consoleName: 'ttyAMA0',
        memoryMiB: 256,
        boot: { kernel: parts.guest.kernel, initrd, append },
        vfioUser: [{ id: 'disk0', socket, addr: '05.0' }],
        extra: ['-cpu', 'cortex-a57'],
        ...more,
      });
      t.teardown(() => vm.kill());
      return vm;
    };
    const a = await serve('a', ['--size', '64M']);
    const source = await start(a.socket, {});
    await source.console.waitFor(irq, { timeoutMs: BOOT_MS });
    await source.console.waitFor(/^tick 80$/, { timeoutMs: BOOT_MS });
    t.match(await findConfigAccess(source.qmp, 'disk0'), { kind: 'ecam', base: ecam });

    const b = await serve('b', ['--incoming']);
    const destination = await start(b.socket, { incoming: true });
    const { code, stdout, stderr } = await devstate(
      ...['migrate', '--source-qmp', source.qmpPath, '--dest-qmp', destination.qmpPath],
      ...['--uri', `unix:${join(directory, 'ram')}`, '-o', 'json'],
      ...['--device', `disk0,source=${a.migrationSocket},dest=${b.migrationSocket}`],
    );
    t.equal(code, 0, 'devstate migrate', { stderr });
    if (code !== 0) return;
    const result = JSON.parse(stdout) as MigrateResult;
    t.ok(result.running);
    t.comment(
      `pause ${result.downtime.totalMs.toFixed(1)} ms, of it devstate ${result.downtime.devstateMs.toFixed(1)} ms`,
    );
    const first = await destination.console.waitFor(/^tick (\d+)/, { timeoutMs: BOOT_MS });
    const then = Number(first.match[1]) + 96;
    // All that was written before the move has been read again by then.
    await destination.console.waitFor(new RegExp(`^tick ${then}$`), { timeoutMs: BOOT_MS });
    for (const vm of [source, destination])
      t.same(
        vm.console.lines.filter((line) => /^(EIO|LOST)|nvme.*(rror|timeout|reset)|nobody cared/.test(line)),
        [],
      );
  });
}
