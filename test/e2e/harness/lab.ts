// SPDX-License-Identifier: Apache-2.0
/**
 * What a migration test needs, all of it real: device servers, virtual machines whose guest writes to the servers'
 * disks and checks them, and `devstate migrate`, each in a process of its own.
 *
 *     const lab = await MigrationLab.create(t);        // undefined where there is no QEMU: the test is skipped
 *     const a = await lab.serve('a');
 *     const source = await lab.startVm({ server: a });
 *     await lab.guestWrites(source);
 *     const b = await lab.serve('b', { incoming: true });
 *     const destination = await lab.startVm({ server: b, incoming: true });
 *     const { code, result } = await lab.migrate(source, destination);
 *     t.same(await lab.finishAndCheck(destination), []);
 */
import { existsSync, readFileSync } from 'node:fs';
import { mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import type { Phase, UpgradeQemuResult, UpgradeResult } from '../../../src/operations/index.js';
import type { GuestParts, QemuInstallation } from '../../../tools/qemu/provision.js';
import { type Devstate, devstate, devstateCommand, serveNvme } from './devstate-process.js';
import { buildInitramfs, compileGuestProgram } from './initramfs.js';
import { type QemuOptions, type QemuPlan, QemuProcess } from './qemu-process.js';
import { requireGuest, requireQemu } from './require-qemu.js';
import { type MigrateOutcome, RunningMigration } from './running-migration.js';
import { checkWrittenImage } from './written-image.js';

/** The machine that every VM of a lab is, and what its guest does. */
export interface LabOptions {
  /** Guest RAM. Default 128. */
  readonly memoryMiB?: number;
  /** Guest CPUs. Default 1. */
  readonly cpus?: number;
  /** Kernel command line beyond the console, e.g. `pci=nomsi`. */
  readonly append?: string;
  /** RAM that a device server can map (default), or that it has to ask QEMU for, message by message. */
  readonly sharedMemory?: boolean;
  /** QEMU can be replaced by another. Default false. */
  readonly replaceable?: boolean;
  /** PCI address on the root bus of each disk, or `behind-port` for one behind a root port. Default one, `05.0`. */
  readonly disks?: readonly string[];
  /** The guest rewrites some of its memory all the time, so that QEMU always has pages to send. Default false. */
  readonly restless?: boolean;
  /** A guest that reboots begins anew; else its QEMU ends then. Default false. */
  readonly reboots?: boolean;
  /** Shell commands that the guest runs beside its witnesses, and when these have been told to stop. Default none. */
  readonly beside?: string;
  readonly afterwards?: string;
  /** What `blockwriter` is given: positions, writes in flight, writes per fsync. Default 1024, 8, 64. */
  readonly blocks?: number;
  readonly depth?: number;
  readonly syncEvery?: number;
}

/** A running `devstate serve nvme`. */
export interface LabServer {
  readonly name: string;
  readonly socket: string;
  readonly migrationSocket: string;
  /** Path of the disk image. */
  readonly image: string;
  /** Its own, or that of the `devstate run` which it is under. */
  readonly process: Devstate;
  readonly supervised?: boolean;
}

/** A VM with the servers of its disks, in order; their ids in QEMU are `disk0`, `disk1`, … */
export interface LabVm extends QemuProcess {
  readonly servers: readonly LabServer[];
}

/** The guest's address of the one device behind the root port: the firmware numbers its bus 1. */
const BEHIND_PORT = 'behind-port';
/** What must not be in the kernel's log. */
const KERNEL_COMPLAINT =
  /nvme.*([Ee]rror|fail|timeout|abort|reset|[Dd]isabl|[Rr]emoving|mismatch)|I\/O error|nobody cared|lockup|blocked for more than|rcu.*stall|\bBUG: |Oops/;
const WITNESS_COMPLAINT = /^(disk\d+ )?(GAP|BAD|EIO) /;

export class MigrationLab {
  /** A short path: socket paths are bounded. */
  readonly directory: string;
  readonly qemu: QemuInstallation;
  readonly options: Required<LabOptions>;
  /** Every VM ever started. */
  readonly vms: LabVm[] = [];
  readonly servers: LabServer[] = [];
  readonly #boot: { readonly kernel: string; readonly initrd: string };
  readonly #migrations: RunningMigration[] = [];
  /** Processes that serve, or served, as successors. */
  readonly #successors: number[] = [];
  #attempts = 0;

  private constructor(
    directory: string,
    qemu: QemuInstallation,
    boot: { kernel: string; initrd: string },
    options: Required<LabOptions>,
  ) {
    this.directory = directory;
    this.qemu = qemu;
    this.#boot = boot;
    this.options = options;
  }

  /** A lab that is torn down with `t`, or `undefined` once `t` is skipped (or failed) because QEMU cannot be had. */
  static async create(t: Test, options: LabOptions = {}): Promise<MigrationLab | undefined> {
    const qemu = await requireQemu(t);
    const guest = qemu && (await requireGuest(t));
    if (qemu === undefined || guest === undefined) return undefined;
    const defaults = {
      memoryMiB: 128,
      cpus: 1,
      append: '',
      sharedMemory: true,
      replaceable: false,
      restless: false,
      reboots: false,
      beside: '',
      afterwards: '',
      disks: ['05.0'],
    };
    const all = { ...defaults, blocks: 1024, depth: 8, syncEvery: 64, ...options };
    const initrd = await buildGuest(guest, all);
    const directory = await mkdtemp(join(tmpdir(), 'lab-'));
    const lab = new MigrationLab(directory, qemu, { kernel: guest.kernel, initrd }, all);
    t.teardown(() => lab.close());
    return lab;
  }

  /** Path of a disk's image. */
  image(disk = 0): string {
    return join(this.directory, `disk${disk}.img`);
  }

  /** Starts a device server; resolves when it listens. `args`: more of the command's arguments. */
  async serve(
    name: string,
    options: {
      incoming?: boolean;
      args?: readonly string[];
      disk?: number;
      image?: string;
      /** Options of `devstate run`, to run it under that. */
      supervisor?: readonly string[];
    } = {},
  ): Promise<LabServer> {
    const paths = {
      socket: join(this.directory, `${name}.sock`),
      migrationSocket: join(this.directory, `${name}.mig`),
      image: options.image ?? this.image(options.disk),
    };
    // Linux refuses a second controller of the same serial number.
    const serial = ['--param', `serial=DISK${options.disk ?? 0}`];
    const args = [...serial, ...(options.incoming ? ['--incoming'] : []), ...(options.args ?? [])];
    const { supervisor } = options;
    const process = await serveNvme({ ...paths, args, supervisor });
    const server = { name, ...paths, process, supervised: supervisor !== undefined };
    this.servers.push(server);
    return server;
  }

  /** Starts a VM whose disks `server`, or `servers` in order, provide. With `incoming` it waits for a migration. */
  async startVm(
    options: ({ server: LabServer } | { servers: readonly LabServer[] }) & {
      incoming?: boolean;
      /** Overrides the lab's. */
      append?: string;
      /** Overrides the lab's. */
      memoryMiB?: number;
      /** Overrides the lab's. */
      disks?: readonly string[];
      /** A file for QEMU's stderr. */
      log?: string;
      /** QEMU's working directory. */
      cwd?: string;
      /** More of QEMU's arguments. */
      extra?: readonly string[];
    },
  ): Promise<LabVm> {
    const servers = 'server' in options ? [options.server] : options.servers;
    const append = options.append ?? this.options.append;
    const machine = {
      ...this.#machine(servers, append, options.extra, options.disks),
      memoryMiB: options.memoryMiB ?? this.options.memoryMiB,
      ...(options.log === undefined ? {} : { log: options.log }),
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      incoming: options.incoming === true,
    };
    return this.#know(await QemuProcess.start(this.qemu, machine), servers);
  }

  #machine(
    servers: readonly LabServer[],
    append = this.options.append,
    extra: readonly string[] = [],
    disks = this.options.disks,
  ): QemuOptions {
    const { memoryMiB, cpus, sharedMemory, replaceable, reboots } = this.options;
    const ports = disks.includes(BEHIND_PORT)
      ? ['-device', 'pcie-root-port,id=root-port,addr=1c.0,chassis=1']
      : [];
    return {
      memoryMiB,
      sharedMemory,
      replaceable,
      reboots,
      boot: { ...this.#boot, append },
      vfioUser: servers.map(({ socket }, disk) => {
        const addr = disks[disk] ?? '';
        const where = addr === BEHIND_PORT ? { addr: '00.0', bus: 'root-port' } : { addr };
        return { id: `disk${disk}`, socket, ...where };
      }),
      before: ports,
      extra: ['-smp', String(cpus), ...extra],
    };
  }

  #know(vm: QemuProcess, servers: readonly LabServer[]): LabVm {
    const labVm = Object.assign(vm, { servers });
    labVm.console.diagnose = () => this.#diagnose(labVm);
    this.vms.push(labVm);
    return labVm;
  }

  /** The command line of a QEMU that takes the place of a VM's, and `devstate upgrade --qemu` up to it. */
  async planUpgrade(
    vm: LabVm,
    mode: 'cpr-transfer' | 'cpr-exec',
    extraArgs: readonly string[] = [],
  ): Promise<{ plan: QemuPlan; args: readonly string[] }> {
    const like = mode === 'cpr-exec' ? vm : undefined;
    const plan = await QemuProcess.plan(this.qemu, this.#machine(vm.servers), like);
    const devices = vm.servers.flatMap(({ migrationSocket }, disk) => [
      ...['--device', `disk${disk},server=${migrationSocket}`],
    ]);
    const log = ['--log', join(this.directory, 'qemus.log')];
    const args = ['upgrade', '--qemu', '--source-qmp', vm.qmpPath, '--mode', mode, ...devices, ...log];
    return { plan, args: [...args, '-o', 'json', ...extraArgs, '--', ...plan.command] };
  }

  /** Replaces the QEMU of a VM. @returns the VM as it is then, and how that went */
  async upgradeQemu(
    vm: LabVm,
    mode: 'cpr-transfer' | 'cpr-exec',
  ): Promise<{ vm: LabVm; result: UpgradeQemuResult }> {
    const { plan, args } = await this.planUpgrade(vm, mode);
    const { code, stdout, stderr } = await devstate(...args);
    if (code !== 0) throw new Error(`devstate upgrade --qemu ended with ${code}: ${stderr}`);
    const result = JSON.parse(stdout) as UpgradeQemuResult;
    return { vm: await this.adoptVm(vm, plan, result.pid), result };
  }

  /** The VM of `planUpgrade`. @param pid of its process; default: the old one's */
  async adoptVm(old: LabVm, plan: QemuPlan, pid = old.process.pid ?? 0): Promise<LabVm> {
    // One client at a time: the program may be the old one still.
    if (pid === old.process.pid) old.qmp.close();
    return this.#know(await QemuProcess.adopt(plan, pid), old.servers);
  }

  /**
   * Starts `devstate migrate` for all disks of a VM; `extraArgs` come last, so they win.
   * @param standsAt the phase for `RunningMigration.at`
   * @param under a command that runs `devstate`
   */
  startMigrate(
    from: LabVm,
    to: LabVm,
    extraArgs: readonly string[] = [],
    standsAt?: Phase,
    under?: readonly string[],
  ): RunningMigration {
    const devices = from.servers.flatMap(({ migrationSocket }, disk) => {
      const dest = to.servers[disk]?.migrationSocket;
      return ['--device', `disk${disk},source=${migrationSocket},dest=${dest}`];
    });
    const uri = `unix:${join(this.directory, `ram${this.#attempts++}`)}`;
    const ends = ['--source-qmp', from.qmpPath, '--dest-qmp', to.qmpPath, '--uri', uri];
    const args = ['migrate', ...ends, ...devices, '-o', 'json', ...extraArgs];
    const migration = new RunningMigration(args, standsAt, under);
    this.#migrations.push(migration);
    return migration;
  }

  /** Runs `devstate migrate` to its end. */
  migrate(from: LabVm, to: LabVm, extraArgs: readonly string[] = []): Promise<MigrateOutcome> {
    return this.startMigrate(from, to, extraArgs).finished;
  }

  /** Replaces the process of a server of `serve` by another one, `args` its own, and returns how that went. */
  async upgrade(server: LabServer, args: readonly string[]): Promise<UpgradeResult> {
    const { socket, migrationSocket, image } = server;
    const where = ['--socket', socket, '--migration-socket', migrationSocket, '--image', image];
    const { code, stdout, stderr } = await devstate(
      ...['upgrade', '--migration-socket', migrationSocket, '--log', join(this.directory, 'successors.log')],
      ...['-o', 'json', '--', ...devstateCommand('serve', 'nvme', ...where, ...args)],
    );
    if (code !== 0) throw new Error(`devstate upgrade ended with ${code}: ${stderr}`);
    const result = JSON.parse(stdout) as UpgradeResult;
    this.#successors.push(result.pid);
    return result;
  }

  /** Resolves when the guest has written and verified blocks from now on; the sequence number of the last one. */
  async guestWrites(vm: LabVm, options: { disk?: number } = {}): Promise<number> {
    const prefix = prefixOf(options.disk ?? 0);
    const tick = new RegExp(`^${prefix}tick (\\d+) (\\d+)`);
    const first = await vm.console.waitFor(tick, { from: vm.console.lines.length });
    const second = await vm.console.waitFor(tick, { from: first.next });
    return Number(second.match[1]);
  }

  /** Names of the servers that hold the lock of a disk's image now, as the kernel knows it. */
  async lockHolders(disk = 0): Promise<string[]> {
    const inode = (await stat(this.image(disk))).ino;
    const servers = this.servers.filter(({ process }) => !process.hasEnded);
    const holds = await Promise.all(servers.map(({ process }) => holdsLock(process.process.pid ?? 0, inode)));
    return servers.filter((_, index) => holds[index]).map(({ name }) => name);
  }

  /**
   * Ends the guest's work in `vm`, where it runs now, and looks at everything that can show a fault: what any VM's
   * console ever said, the kernel's log, the images block by block. @returns what is wrong, one line each; empty if
   * all is as it must be
   */
  async finishAndCheck(vm: LabVm): Promise<string[]> {
    const from = vm.console.lines.length;
    vm.console.write('dmesg');
    const dmesg = await vm.console.waitFor(/^dmesg-end/, { from });
    const problems = vm.console.lines.slice(from, dmesg.next).filter((line) => KERNEL_COMPLAINT.test(line));
    vm.console.write('stop');
    for (const disk of this.options.disks.keys()) {
      const pattern = new RegExp(`^${prefixOf(disk)}done (\\d+) (\\d+) (\\d+)`);
      const { match } = await vm.console.waitFor(pattern, { from });
      const [last, first, errors] = match.slice(1).map(Number) as [number, number, number];
      if (errors > 0) problems.push(`disk ${disk}: the guest counted ${errors} errors`);
      if (last < this.options.blocks / 8) problems.push(`disk ${disk}: only ${last} blocks were written`);
      const wrong = await checkWrittenImage(this.image(disk), this.options.blocks, { last, first });
      problems.push(...wrong.map((what) => `disk ${disk}: ${what}`));
    }
    for (const { console } of this.vms) {
      problems.push(...console.lines.filter((line) => WITNESS_COMPLAINT.test(line)));
    }
    return problems;
  }

  /** Warnings and errors that device servers and migrations have logged so far: there are none where all goes well. */
  warnings(): string[] {
    const said = [...this.servers, ...this.#migrations].map(({ process }) => process.stderr);
    const isWarning = (line: string): boolean => /^\{"level":[45]0,|^warning: | (warn|error) /.test(line);
    return said.flatMap((text) => text.split('\n')).filter(isWarning);
  }

  /** What may tell why a guest does not say what it should. */
  async #diagnose(vm: LabVm): Promise<string> {
    const ask = async (command: string, args = {}): Promise<string> => {
      const signal = AbortSignal.timeout(5000);
      const answer = vm.qmp.execute(command, { arguments: args, signal });
      return `${command}: ${JSON.stringify(await answer.catch((error: unknown) => String(error)))}`;
    };
    const from = vm.console.lines.length;
    vm.console.write('dmesg');
    await new Promise((resolve) => setTimeout(resolve, 3000));
    return [
      await ask('query-status'),
      await ask('query-migrate'),
      await ask('human-monitor-command', { 'command-line': 'info registers -a' }),
      `console after \`dmesg\`: ${vm.console.lines.slice(from).join('\n')}`,
      `QEMU: ${vm.stderr}`,
      ...this.servers.map(({ name, process }) => `server ${name}: ${process.stderr.slice(-2000)}`),
      ...this.#migrations.map(({ process }) => `migrate: ${process.stderr.slice(-1000)}`),
    ].join('\n');
  }

  /** Ends everything and removes the directory. */
  async close(): Promise<void> {
    await Promise.all(this.#migrations.map(({ process }) => process.end()));
    await Promise.all(this.vms.map((vm) => vm.kill()));
    // A supervisor that is killed leaves its server behind.
    await Promise.all(
      this.servers.map(({ process, supervised }) => process.end(supervised === true ? 'SIGTERM' : 'SIGKILL')),
    );
    for (const pid of this.#successors) endServer(pid);
    await rm(this.directory, { recursive: true, force: true });
  }
}

/** A server that was started for us, if it is one still. */
function endServer(pid: number): void {
  const command = `/proc/${pid}/cmdline`;
  if (existsSync(command) && readFileSync(command, 'utf8').includes('serve')) process.kill(pid, 'SIGKILL');
}

function prefixOf(disk: number): string {
  return disk === 0 ? '' : `disk${disk} `;
}

/** Whether a process has a write lock on a file: its open files tell (proc(5), fdinfo), a line like `lock: 1: OFDLCK ADVISORY WRITE -1 fe:00:42 0 EOF`. */
async function holdsLock(pid: number, inode: number): Promise<boolean> {
  const directory = `/proc/${pid}/fdinfo`;
  const lock = new RegExp(`^lock:.* WRITE .*:${inode} `, 'm');
  for (const fd of await readdir(directory).catch(() => [])) {
    // A descriptor may be closed before it is looked at.
    if (lock.test(await readFile(join(directory, fd), 'utf8').catch(() => ''))) return true;
  }
  return false;
}

/** One witness for each disk. The first one has the console; what the others say is prefixed with `disk<n> `. */
async function buildGuest(guest: GuestParts, options: Required<LabOptions>): Promise<string> {
  const { disks, blocks, depth, syncEvery, restless, beside, afterwards } = options;
  const witness = (disk: number) => {
    const address = disks[disk] === BEHIND_PORT ? '01:00.0' : `00:${disks[disk]}`;
    const name = `$(basename /sys/bus/pci/devices/0000:${address}/nvme/nvme*/nvme*n1)`;
    return `blockwriter /dev/${name} ${blocks} ${depth} ${syncEvery}`;
  };
  const others = [...disks.keys()].slice(1);
  const lines = [
    "grep nvme /proc/interrupts | sed 's/^/irq /'",
    ...(restless
      ? ['while :; do dd if=/dev/zero of=/tmp/fill bs=64k count=64 conv=notrunc 2>&-; done &']
      : []),
    ...others.flatMap((disk) => [
      `mkfifo /tmp/in${disk}`,
      `${witness(disk)} <>/tmp/in${disk} | while read -r line; do echo "disk${disk} $line"; done &`,
    ]),
    ...(beside === '' ? [] : [`(${beside}) &`]),
    witness(0),
    ...others.map((disk) => `echo stop >/tmp/in${disk}`),
    ...(restless ? ['kill %1'] : []),
    ...(afterwards === '' ? [] : [afterwards]),
    ...(beside === '' ? ['wait'] : []),
  ];
  const files = { '/bin/blockwriter': await compileGuestProgram('blockwriter') };
  return buildInitramfs({ guest, files, init: lines.join('\n') });
}
