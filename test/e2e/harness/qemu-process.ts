// SPDX-License-Identifier: Apache-2.0
/** A QEMU under test: started, watched and cleaned up. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DevstateError } from '../../../src/errors.js';
import { QmpClient } from '../../../src/qemu/qmp.js';
import type { QemuInstallation } from '../../../tools/qemu/provision.js';
import { SerialConsole } from './serial-console.js';

/** Bounds what is kept of QEMU's stderr. */
const MAX_STDERR_CHARACTERS = 64 << 10;

/** How long QEMU may take to answer. */
const START_MS = 30_000;

/** Ends a QEMU with the test that started it, even if that is killed. */
const WITH_PARENT = ['setpriv', '--pdeathsig', 'KILL', '--'];

/** A device that a vfio-user server provides. */
export interface VfioUserDevice {
  /** QEMU's device id */
  readonly id: string;
  /** Path of the server's socket */
  readonly socket: string;
  /** Slot and function on its bus, e.g. `05.0` */
  readonly addr: string;
  /** Id of the port it is behind; the root bus unless given. */
  readonly bus?: string;
}

export interface QemuOptions {
  /** As for QEMU's `-machine`. Default `q35`. */
  readonly machine?: string;
  /** The kernel's name of the serial console. Default `ttyS0`. */
  readonly consoleName?: string;
  /** Guest RAM. Default 256. */
  readonly memoryMiB?: number;
  /** Whether RAM is a file that a device server can map (default), or QEMU's own. */
  readonly sharedMemory?: boolean;
  /** What to boot; without it the firmware finds nothing to boot and idles. */
  readonly boot?: { readonly kernel: string; readonly initrd: string; readonly append?: string };
  readonly vfioUser?: readonly VfioUserDevice[];
  /** Start paused and wait for a migration (`migrate-incoming`). */
  readonly incoming?: boolean;
  /** Start with the CPUs stopped. */
  readonly paused?: boolean;
  /** It can be replaced by another QEMU while its guest runs. */
  readonly replaceable?: boolean;
  /** A guest that reboots begins anew. Default false: QEMU ends then. */
  readonly reboots?: boolean;
  /** More of QEMU's arguments, such as ports, that the vfio-user devices need before them. */
  readonly before?: readonly string[];
  /** Its working directory, for paths that are not absolute. Default: the test's. */
  readonly cwd?: string;
  /** A file for QEMU's stderr, which the test itself does not see then. */
  readonly log?: string;
  /** More of QEMU's arguments. */
  readonly extra?: readonly string[];
}

/** A QEMU that somebody else starts. */
export interface QemuPlan {
  readonly directory: string;
  readonly console: SerialConsole;
  readonly command: readonly string[];
}

/** As much of a process as is needed of one that is not our child. */
type AnyProcess = Pick<ChildProcess, 'pid' | 'kill'>;

/** A running QEMU: q35, TCG, shared memfd RAM, serial console, and two QMP sockets. */
export class QemuProcess {
  /** The QMP socket for what is being tested; one client at a time, so tests themselves use {@link qmp}. */
  readonly qmpPath: string;
  /** The test's own connection, to a QMP socket of its own. */
  readonly qmp: QmpClient;
  readonly console: SerialConsole;
  readonly process: AnyProcess;
  readonly #directory: string;
  readonly #stderr: () => string;

  private constructor(
    directory: string,
    process: AnyProcess,
    serial: SerialConsole,
    qmp: QmpClient,
    stderr: () => string,
  ) {
    this.qmpPath = join(directory, 'qmp');
    this.#directory = directory;
    this.process = process;
    this.console = serial;
    this.qmp = qmp;
    this.#stderr = stderr;
  }

  /** Starts QEMU and resolves once its QMP answers. The caller kills it: `t.teardown(() => qemu.kill())`. */
  static async start(qemu: QemuInstallation, options: QemuOptions = {}): Promise<QemuProcess> {
    const directory = await mkdtemp(join(tmpdir(), 'devstate-vm-'));
    const serial = new SerialConsole(join(directory, 'serial'));
    const argv = [...(existsSync('/usr/bin/setpriv') ? WITH_PARENT : []), ...qemu.command];
    const log = options.log === undefined ? undefined : openSync(options.log, 'a');
    const child = spawn(argv[0] ?? '', [...argv.slice(1), ...qemuArguments(directory, options)], {
      env: { ...process.env, ...qemu.environment },
      stdio: ['ignore', 'ignore', log ?? 'pipe'],
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    if (log !== undefined) closeSync(log);
    const ended = new AbortController();
    let stderr = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      stderr = (stderr + text).slice(-MAX_STDERR_CHARACTERS);
    });
    const exited = once(child, 'exit').then(([code, signal]) => {
      const error = new Error(`QEMU ended (${signal ?? `code ${code}`}): ${stderr.trim()}`);
      serial.end(error);
      ended.abort(error);
      throw error;
    });
    exited.catch(() => {});
    try {
      const qmp = await Promise.race([connectWhenThere(directory, ended.signal), exited]);
      return new QemuProcess(directory, child, serial, qmp, () => stderr);
    } catch (cause) {
      child.kill('SIGKILL');
      serial.end(new Error('QEMU did not start'));
      await rm(directory, { recursive: true, force: true });
      throw new Error(`QEMU did not start: ${stderr.trim()}`, { cause });
    }
  }

  /** The command line of a QEMU that somebody else starts. @param like it takes the place of this one: the same sockets */
  static async plan(qemu: QemuInstallation, options: QemuOptions, like?: QemuProcess): Promise<QemuPlan> {
    const directory = like === undefined ? await mkdtemp(join(tmpdir(), 'devstate-vm-')) : like.#directory;
    const serial = like?.console ?? new SerialConsole(join(directory, 'serial'));
    const environment = Object.entries(qemu.environment).map(([name, value]) => `${name}=${value}`);
    const command = ['env', ...environment, ...qemu.command, ...qemuArguments(directory, options)];
    return { directory, console: serial, command };
  }

  /** One that was started by `plan`, and runs. @param pid of it */
  static async adopt({ directory, console: serial }: QemuPlan, pid: number): Promise<QemuProcess> {
    const qmp = await connectWhenThere(directory, AbortSignal.timeout(START_MS));
    const kill = (signal?: NodeJS.Signals | number): boolean => isRunning(pid) && process.kill(pid, signal);
    return new QemuProcess(directory, { pid, kill }, serial, qmp, () => '');
  }

  /** A path in this machine's own temporary directory, for a socket or a file. */
  path(name: string): string {
    return join(this.#directory, name);
  }

  /** What QEMU said on stderr, its last part. */
  get stderr(): string {
    return this.#stderr();
  }

  /** Ends QEMU at once and removes its directory. May be called again. */
  async kill(): Promise<void> {
    this.qmp.close();
    const { pid = 0 } = this.process;
    if (isRunning(pid)) this.process.kill('SIGKILL');
    while (isRunning(pid)) await new Promise((resolve) => setTimeout(resolve, 5));
    await removePlan({ directory: this.#directory, console: this.console });
  }
}

/** Processes that run with a file of the directory on their command line. */
export function processesOf(directory: string): number[] {
  return readdirSync('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && pid !== process.pid && commandLine(pid).includes(`${directory}/`));
}

function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1');
  } catch {
    return '';
  }
}

type PlanPlace = Pick<QemuPlan, 'directory' | 'console'>;

/** A QEMU is not to be: ends it, wherever it has come to, and removes what was there for it. No manager may be at work with it. */
export async function discardPlan(plan: PlanPlace): Promise<void> {
  for (const pid of processesOf(plan.directory)) end(pid);
  await removePlan(plan);
}

async function removePlan({ directory, console: serial }: PlanPlace): Promise<void> {
  serial.end(new Error('QEMU is not wanted any more'));
  await rm(directory, { recursive: true, force: true });
}

/** Kills a process, unless it has ended this moment. */
function end(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

/** Whether there is such a process, and it is more than a record of how it ended. */
export function isRunning(pid: number): boolean {
  try {
    return !/^State:\s*Z/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}

/**
 * QEMU listens only some time after its start, and says so nowhere; between the appearance of its socket and that it
 * listens, connections are refused. Its QMP sockets come in the order of its arguments: this is the last.
 */
async function connectWhenThere(directory: string, ended: AbortSignal): Promise<QmpClient> {
  const signal = AbortSignal.any([ended, AbortSignal.timeout(START_MS)]);
  for (;;) {
    try {
      return await QmpClient.connect(join(directory, 'qmp-test'), { signal, timeoutMs: START_MS });
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_QMP_CONNECT') throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

function qemuArguments(directory: string, options: QemuOptions): string[] {
  const size = `${options.memoryMiB ?? 256}M`;
  const monitor = (name: string) => ['-qmp', `unix:${join(directory, name)},server=on,wait=off`];
  const boot = options.boot;
  return [
    ...['-accel', 'tcg', '-M', options.machine ?? 'q35', '-m', size, '-nodefaults', '-display', 'none'],
    ...(options.reboots === true ? [] : ['-no-reboot']),
    // What a device server maps must be a file that can be passed.
    ...(options.sharedMemory === false
      ? []
      : ['-object', `memory-backend-memfd,id=mem,size=${size},share=on`, '-machine', 'memory-backend=mem']),
    ...(options.replaceable === true ? ['-machine', 'aux-ram-share=on'] : []),
    ...['-chardev', `socket,id=serial0,path=${join(directory, 'serial')}`, '-serial', 'chardev:serial0'],
    ...monitor('qmp'),
    ...monitor('qmp-test'),
    ...(options.before ?? []),
    ...(options.vfioUser ?? []).flatMap(({ socket, ...where }) => {
      const device = { driver: 'vfio-user-pci', ...where, socket: { type: 'unix', path: socket } };
      return ['-device', JSON.stringify(device)];
    }),
    ...(options.incoming ? ['-S', '-incoming', 'defer'] : options.paused ? ['-S'] : []),
    ...(boot === undefined
      ? []
      : [
          '-kernel',
          boot.kernel,
          '-initrd',
          boot.initrd,
          '-append',
          kernelCommandLine(boot.append, options.consoleName),
        ]),
    ...(options.extra ?? []),
  ];
}

function kernelCommandLine(more = '', consoleName = 'ttyS0'): string {
  // Without KVM a guest may see no timer tick for so long, on a busy machine, that Linux takes its timer for broken.
  return `console=${consoleName} quiet panic=-1 no_timer_check ${more}`.trim();
}
