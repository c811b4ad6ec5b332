// SPDX-License-Identifier: Apache-2.0
/**
 * A guest with a real kernel VFIO, for programs that this package brings: an emulated IOMMU, QEMU's `edu` device
 * (DMA engine and interrupt) bound to vfio-pci, and node.
 *
 *     const guest = await VfioGuest.start(t);             // undefined where there is no QEMU: the test is skipped
 *     if (guest === undefined) return;
 *     await guest.run(t, 'vfio-transfer', ['--times', '100']);   // dist/test/e2e/guest/vfio-transfer.js
 *     const { code, lines } = await guest.shell('ls /dev/vfio');
 *
 * Booting costs more than most programs: run several in one guest. What a program reports (see `../guest/report.ts`)
 * becomes a test of its own, what it prints besides a comment.
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { BUILD_COMMAND, builtKernel } from '../../../tools/kernel/build.js';
import { END_MARK, type GuestResult, RESULT_MARK } from '../guest/report.js';
import { PACKAGE, writeNodeInitramfs } from './node-initramfs.js';
import { qemuArchive } from './qemu-archive.js';
import { QemuProcess } from './qemu-process.js';
import { requireGuest, requireQemu } from './require-qemu.js';

/** PCI address, in the guest, of the `edu` device that is bound to vfio-pci. */
export const EDU_ADDRESS = '0000:00:03.0';

/** Boot, and every program, may take this long unless told otherwise: machines are busy, TCG is slow. */
const TIMEOUT_MS = 300_000;

/** Of a program's output and the kernel's log, how much an error shows. */
const TAIL_LINES = 30;

export interface VfioGuestOptions {
  /**
   * `debian`: Debian's cloud kernel, VFIO with containers and groups. `iommufd`: the kernel that `tools/kernel`
   * builds, which has iommufd, character devices and mtty besides. Default `debian`.
   */
  readonly kernel?: 'debian' | 'iommufd';
  /** Guest RAM. Default 1024. */
  readonly memoryMiB?: number;
  /** More of QEMU's arguments. */
  readonly extra?: readonly string[];
  /** With a QEMU in the guest: `/qemu/run` starts it. */
  readonly qemu?: boolean;
}

/** How a command in the guest ended. */
export interface GuestCommandOutcome {
  /** As a shell gives it: 128 + the signal's number where a signal ended it. */
  readonly code: number;
  /** What it printed, on stdout and stderr. */
  readonly lines: readonly string[];
}

export class VfioGuest {
  readonly vm: QemuProcess;
  /** Console line at which the next command's output begins. */
  #next: number;
  #commands = 0;

  private constructor(vm: QemuProcess, next: number) {
    this.vm = vm;
    this.#next = next;
  }

  /** A guest that ends with `t`, or `undefined` once `t` is skipped (or failed) because a part cannot be had. */
  static async start(t: Test, options: VfioGuestOptions = {}): Promise<VfioGuest | undefined> {
    const kernel = options.kernel === 'iommufd' ? requireIommufdKernel(t) : '';
    const qemu = kernel === undefined ? undefined : await requireQemu(t);
    const guest = qemu && (await requireGuest(t));
    if (kernel === undefined || qemu === undefined || guest === undefined) return undefined;

    const began = performance.now();
    const directory = await mkdtemp(join(tmpdir(), 'devstate-guest-'));
    t.teardown(() => rm(directory, { recursive: true, force: true }));
    const initrd = join(directory, 'initrd');
    const init = initScript(kernel === '' ? guest.vfioModules : []);
    const archives = options.qemu === true ? [await qemuArchive(qemu)] : [];
    await writeNodeInitramfs(initrd, guest, init, archives);
    const vm = await QemuProcess.start(qemu, {
      memoryMiB: options.memoryMiB ?? 1024,
      sharedMemory: false,
      // loglevel: a message of the kernel's would tear the lines of a program.
      boot: { kernel: kernel || guest.kernel, initrd, append: 'intel_iommu=on loglevel=1' },
      extra: [
        ...['-machine', 'kernel-irqchip=split', '-cpu', 'max'],
        ...['-device', 'intel-iommu,intremap=on', '-device', `edu,addr=${EDU_ADDRESS.slice(8)}`],
        ...(options.extra ?? []),
      ],
    });
    t.teardown(() => vm.kill());
    // QEMU has read it; a test that is killed leaves 120 MB less.
    await rm(directory, { recursive: true });
    const { next } = await vm.console.waitFor(/^guest-ready$/, { timeoutMs: TIMEOUT_MS });
    t.comment(`boot: ${(performance.now() - began).toFixed(0)} ms`);
    return new VfioGuest(vm, next);
  }

  /**
   * Runs the compiled program `name` of test/e2e/guest as a test of `t`, each of its results as a test in that.
   * A program that is not done after `timeoutMs` is killed.
   */
  async run(
    t: Test,
    name: string,
    args: readonly string[] = [],
    { timeoutMs = TIMEOUT_MS }: { timeoutMs?: number } = {},
  ): Promise<void> {
    const program = `${PACKAGE}/dist/test/e2e/guest/${name}.js`;
    const command = ['node', program, ...args].map(quoted).join(' ');
    await t.test(name, async (t) => {
      let results = 0;
      let failures = 0;
      let told: number | undefined;
      const began = performance.now();
      const { code, lines } = await this.#run(command, timeoutMs, (line) => {
        if (line.startsWith(END_MARK)) {
          told = Number(line.slice(END_MARK.length));
          return;
        }
        if (!line.startsWith(RESULT_MARK)) return t.comment(line);
        const result = JSON.parse(line.slice(RESULT_MARK.length)) as GuestResult;
        results++;
        if (result.ok) return t.pass(`${result.name} (${result.ms} ms)`);
        failures++;
        t.fail(`${result.name}: ${result.message?.split('\n')[0]}`, { stack: result.stack ?? '' });
      });
      t.comment(`${name}: ${(performance.now() - began).toFixed(0)} ms`);
      const asReported = code === (failures === 0 ? 0 : 1) && results > 0 && told === results;
      if (!asReported) t.fail(`${name} ended with code ${code} after ${results} results`);
      if (!asReported || failures > 0) await this.#diagnose(t, lines);
    });
  }

  /** Runs a shell command in the guest; a command that is not done after `timeoutMs` is killed. */
  async shell(command: string, { timeoutMs = TIMEOUT_MS } = {}): Promise<GuestCommandOutcome> {
    return this.#run(`sh -c ${quoted(command)}`, timeoutMs, () => {});
  }

  async #run(
    command: string,
    timeoutMs: number,
    onLine: (line: string) => void,
  ): Promise<GuestCommandOutcome> {
    const mark = `@exit ${++this.#commands}`;
    const begin = this.#next;
    const limit = `timeout -s KILL ${Math.ceil(timeoutMs / 1000)}`;
    this.vm.console.write(`${limit} ${command} 2>&1; code=$?; echo; echo "${mark} $code"`);
    for (;;) {
      // The guest's own clock ends the command; the margin is for a guest that has stopped altogether.
      const { next } = await this.vm.console.waitFor(/^/, {
        from: this.#next,
        timeoutMs: timeoutMs + 30_000,
      });
      const line = this.vm.console.lines[next - 1]!;
      this.#next = next;
      if (line.startsWith(`${mark} `)) {
        const lines = this.vm.console.lines.slice(begin, next - 1);
        // The end mark's own line break, for output that ends in the middle of a line.
        if (lines.at(-1) === '') lines.pop();
        return { code: Number(line.slice(mark.length)), lines };
      }
      if (line !== '') onLine(line);
    }
  }

  /** Shows the end of a program's output and of the kernel's log. */
  async #diagnose(t: Test, output: readonly string[]): Promise<void> {
    const log = await this.shell(`dmesg | tail -n ${TAIL_LINES}`);
    t.comment(['the last output:', ...output.slice(-TAIL_LINES)].join('\n'));
    t.comment(['the last of the kernel log:', ...log.lines].join('\n'));
  }
}

/** Loads the modules, hands `edu` to vfio-pci, then runs the lines that are typed. */
function initScript(modules: readonly string[]): string {
  return [
    'mount -t tmpfs tmpfs /tmp',
    'mount -t tmpfs tmpfs /run',
    'mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null',
    'ulimit -c 0',
    ...modules.map((path) => `insmod /lib/${path.split('/').at(-1)}`),
    `echo vfio-pci > /sys/bus/pci/devices/${EDU_ADDRESS}/driver_override`,
    `echo ${EDU_ADDRESS} > /sys/bus/pci/drivers_probe`,
    'export HOME=/tmp TERM=dumb',
    'cd /tmp',
    'echo guest-ready',
    'while read -r line; do eval "$line"; done',
  ].join('\n');
}

/** The kernel with iommufd, or `undefined` once `t` is skipped (or failed) because it has not been built. */
function requireIommufdKernel(t: Test): string | undefined {
  const kernel = builtKernel();
  if (kernel !== undefined) return kernel;
  const reason = `no kernel with iommufd: build it with "${BUILD_COMMAND}" (7 minutes on two cores)`;
  if (process.env.DEVSTATE_REQUIRE_IOMMUFD) t.fail(reason);
  else t.plan(0, reason);
  return undefined;
}

/** As one word of a shell. */
function quoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}
