// SPDX-License-Identifier: Apache-2.0
/** Two QEMUs for a cpr-transfer: a Linux guest that counts in the one, and the other that waits for it. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { MigrationWatch, startTransfer, transferArguments } from '../../../src/qemu/index.js';
import type { GuestParts, QemuInstallation } from '../../../tools/qemu/provision.js';
import { buildInitramfs } from './initramfs.js';
import { QemuProcess } from './qemu-process.js';

const COUNTS = 'i=0; while :; do echo "tick $i"; i=$((i+1)); usleep 50000; done';

export class CprPair {
  /** Of sockets; short, as their paths are bounded. */
  readonly directory: string;
  readonly source: QemuProcess;
  readonly #qemu: QemuInstallation;
  readonly #machine: { boot: { kernel: string; initrd: string }; extra: readonly string[] };
  readonly #destinations: Promise<QemuProcess>[] = [];

  private constructor(
    directory: string,
    source: QemuProcess,
    qemu: QemuInstallation,
    machine: { boot: { kernel: string; initrd: string }; extra: readonly string[] },
  ) {
    this.directory = directory;
    this.source = source;
    this.#qemu = qemu;
    this.#machine = machine;
  }

  /** A source whose guest counts; torn down with `t`. `extra`: more arguments of both QEMUs. */
  static async start(
    t: Test,
    qemu: QemuInstallation,
    guest: GuestParts,
    extra: readonly string[] = [],
  ): Promise<CprPair> {
    const boot = { kernel: guest.kernel, initrd: await buildInitramfs({ guest, init: COUNTS }) };
    const machine = { boot, extra: ['-machine', 'aux-ram-share=on', ...extra] };
    const directory = await mkdtemp(join(tmpdir(), 'cpr-'));
    const source = await QemuProcess.start(qemu, { memoryMiB: 128, ...machine });
    const pair = new CprPair(directory, source, qemu, machine);
    t.teardown(() => pair.close());
    await pair.counts(source);
    return pair;
  }

  get sockets() {
    return { cpr: join(this.directory, 'cpr'), main: join(this.directory, 'main') };
  }

  /** Starts a destination, which answers when it has been given a list; rejects when it ends before. */
  startDestination(): Promise<QemuProcess> {
    const { boot, extra } = this.#machine;
    const starting = QemuProcess.start(this.#qemu, {
      memoryMiB: 128,
      boot,
      extra: [...extra, ...transferArguments(this.sockets)],
    });
    starting.catch(() => {});
    this.#destinations.push(starting);
    return starting;
  }

  /** Lets the source transfer by a CPR channel at `cpr`; follow it with the watch. */
  async transfer(cpr: string): Promise<MigrationWatch> {
    await this.source.qmp.execute('migrate-set-capabilities', {
      arguments: { capabilities: [{ capability: 'events', state: true }] },
    });
    const watch = new MigrationWatch(this.source.qmp);
    await this.source.qmp.execute('migrate-set-parameters', { arguments: { mode: 'cpr-transfer' } });
    await startTransfer(this.source.qmp, { ...this.sockets, cpr });
    return watch;
  }

  /** Resolves when the guest of `vm` has counted on from now; how far it is. */
  async counts(vm: QemuProcess): Promise<number> {
    const { match, next } = await vm.console.waitFor(/^tick (\d+)/, { from: vm.console.lines.length });
    await vm.console.waitFor(/^tick (\d+)/, { from: next });
    return Number(match[1]);
  }

  async close(): Promise<void> {
    await this.source.kill();
    for (const one of await Promise.allSettled(this.#destinations)) {
      if (one.status === 'fulfilled') await one.value.kill();
    }
    await rm(this.directory, { recursive: true, force: true });
  }
}
