// SPDX-License-Identifier: Apache-2.0
/**
 * A model of a QEMU, as far as migrating a VM and asking about it goes. It knows commands, events and qtest's words, not
 * how they come: {@link QemuStandIn} speaks for it.
 *
 * What it models (of QEMU 11.1):
 *
 *     run state       running, paused, inmigrate, finish-migrate, postmigrate, prelaunch, suspended, shutdown; with STOP,
 *                     RESUME, RESET, SHUTDOWN, DEVICE_DELETED
 *     migration       source: setup → active → pre-switchover → device → completed | cancelling → cancelled | failing → failed
 *                     destination: setup → active → completed | failed; with MIGRATION. RAM is copied, twice
 *     cpr-transfer    the VM stops first; the new QEMU makes its devices when the old one has reached it, RAM is the same
 *     cpr-exec        the VM stops before `migrate` is answered; its state waits in a file; the program is executed after
 *                     `completed`, or `failed` follows
 *     settings        capabilities and parameters, set and shown; capabilities not while a migration is under way
 *     devices         {@link PciFunction}s: real clients of real servers, on an ECAM or a PC's ports
 *     objects         as much of QOM as finds devices, their places and sockets, and the way to configuration space
 *
 * What it does not: guests, CPUs, memory that is unplugged, other devices, postcopy, multifd, TLS, and time: a migration
 * waits in `active` until it is asked how far it is (`switchover`), and so does a program that reads a file.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { GuestRam, PAGE_SIZE } from '../../src/guest-driver/index.js';
import { type FunctionPlace, PciFunction } from './pci-function.js';
import { Accesses } from './qemu-accesses.js';
import { type Arguments, type Hosts, Refusal } from './qemu-hosts.js';
import { QemuObjects } from './qemu-objects.js';

const RAM_BYTES = 16 * PAGE_SIZE;
const IDLE = ['none', 'completed', 'failed', 'cancelled'];

export interface QemuModelOptions {
  /** For messages. */
  readonly name: string;
  readonly hosts: Hosts;
  readonly devices: readonly FunctionPlace[];
  /**
   * It waits for a VM: where `migrate-incoming` says (`-incoming defer`), here, or in this file; and stops when it has
   * come (`-S`).
   */
  readonly incoming?: boolean | { readonly at: string } | { readonly from: string };
  readonly configWay?: 'ecam' | 'ports';
  /** When a migration that is `active` switches over: when it was asked how far it is, or by itself. Default: asked. */
  readonly switchover?: 'asked' | 'at once';
  /** Memory that is not its own, and stays when it ends. */
  readonly ram?: GuestRam;
}

export class QemuModel {
  readonly name: string;
  readonly hosts: Hosts;
  readonly ram: GuestRam;
  readonly devices: PciFunction[] = [];
  readonly options: QemuModelOptions;
  status: string;
  migration: { status: string; error?: string } = { status: 'none' };
  /** It was asked to end, or has ended. */
  ended = false;
  /** Commands that it does not know: a gap of the model. */
  readonly unknown: string[] = [];
  /** Something for everybody who listens to events. */
  emit: (name: string, data?: object) => void = () => {};
  /** Its process ends. */
  exit: () => void = () => {};
  /** Its process executes another program, which is there. */
  become: (command: readonly string[]) => void = () => {};
  /** Work of its own, that comes when the command under way was answered. */
  later: (work: () => void | Promise<void>) => void = () => {};
  /** Called when a migration has become active at the source: as the guest, its device writes memory now. */
  whileActive: () => void | Promise<void> = () => {};
  readonly capabilities = new Map<string, boolean>([
    ['events', false],
    ['return-path', false],
    ['pause-before-switchover', false],
    ['postcopy-ram', false],
    ['background-snapshot', false],
    ['mapped-ram', false],
    ['multifd', false],
    ['x-colo', false],
    ['x-ignore-shared', false],
  ]);
  readonly parameters: Record<string, unknown> = {
    'downtime-limit': 300,
    'max-bandwidth': 134217728,
    'tls-creds': '',
    'multifd-compression': 'none',
    mode: 'normal',
    'cpr-exec-command': [],
  };
  readonly objects: QemuObjects;
  readonly #deleted = new Set<string>();
  /** Its migration is one that comes; until it begins another one itself. */
  #incoming: boolean;
  /** The other end of the migration under way. */
  #peer: QemuModel | undefined;
  #autostart: boolean;
  /** How the VM was when the migration had it stopped. */
  #before = 'running';
  #exitOnError = true;
  readonly #accesses: Accesses;
  #incomingUri: string | undefined;
  /** By cpr-exec: where the VM's state is to be. */
  #file: string | undefined;

  private constructor(options: QemuModelOptions) {
    this.options = options;
    this.name = options.name;
    this.hosts = options.hosts;
    this.ram = options.ram ?? new GuestRam(RAM_BYTES);
    this.#incoming = options.incoming !== undefined && options.incoming !== false;
    this.#autostart = !this.#incoming;
    this.status = this.#incoming ? 'inmigrate' : 'running';
    const way = options.configWay ?? 'ecam';
    this.objects = new QemuObjects(way, () => this.#present);
    this.#accesses = new Accesses(way, () => this.#present);
    this.hosts.qemus.push(this);
  }

  /** A VM that runs, or a QEMU that waits for one. */
  static async start(options: QemuModelOptions): Promise<QemuModel> {
    const qemu = new QemuModel(options);
    for (const place of options.devices) qemu.devices.push(await PciFunction.realize(place, qemu.ram));
    if (typeof options.incoming === 'object') {
      if ('at' in options.incoming) qemu.hosts.listening.set(options.incoming.at, qemu);
      else qemu.#open(options.incoming.from);
      qemu.#setMigration('setup');
    }
    return qemu;
  }

  get isRunning(): boolean {
    return !this.ended && (this.status === 'running' || this.status === 'suspended');
  }

  /** What an operation could leave changed. */
  settings(): { capabilities: Record<string, boolean>; parameters: Record<string, unknown> } {
    return { capabilities: Object.fromEntries(this.capabilities), parameters: { ...this.parameters } };
  }

  /** Runs a command. @throws Refusal */
  async execute(command: string, args: Arguments): Promise<unknown> {
    const run = this.#commands[command];
    if (run !== undefined) return (await run(args)) ?? {};
    this.unknown.push(command);
    throw new Refusal(`The command ${command} has not been found`, 'CommandNotFound');
  }

  readonly #commands: Readonly<Record<string, (args: Arguments) => unknown>> = {
    'query-status': () => ({ status: this.status, running: this.status === 'running' }),
    'query-migrate': () => this.#queryMigrate(),
    'query-migrate-capabilities': () =>
      [...this.capabilities].map(([capability, state]) => ({ capability, state })),
    'query-migrate-parameters': () => ({ ...this.parameters }),
    'migrate-set-capabilities': ({ capabilities }) =>
      this.#setCapabilities(capabilities as { capability: string; state: boolean }[]),
    'migrate-set-parameters': (values) => {
      Object.assign(this.parameters, values);
    },
    migrate: (args) => this.#migrate(args),
    'migrate-incoming': (args) => this.#migrateIncoming(args),
    'migrate-continue': () => this.#migrateContinue(),
    migrate_cancel: () => this.#cancel(),
    'query-yank': () => (this.#isMigrating ? [{ type: 'migration' }] : []),
    yank: () => {
      if (!this.#isMigrating) throw new Refusal('Instance not found', 'DeviceNotFound');
      this.yank();
    },
    cont: () => this.cont(),
    stop: () => this.stop(),
    system_reset: () => this.later(() => this.reset()),
    quit: () => this.quit('host-qmp-quit'),
    'query-chardev': () => this.objects.queryChardev(),
    'chardev-add': (args) => this.objects.addChardev(args),
    'chardev-remove': (args) => this.objects.removeChardev(args),
    'object-add': (args) => this.objects.addObject(args),
    'query-pci': () => this.objects.queryPci(),
    'query-memdev': () => [{ id: 'ram0', size: this.ram.length, share: true, dump: true, prealloc: false }],
    'query-uuid': () => ({ UUID: '7f1d8d46-7a31-4d4a-9c6c-9cfa6f1a5b11' }),
    'query-name': () => ({ name: 'guest' }),
    'query-cpus-fast': () => [{ 'qom-path': '/machine/unattached/device[0]', target: 'x86_64' }],
    'query-qmp-schema': () => [
      { name: 'migrate-incoming', 'meta-type': 'command', 'arg-type': '42' },
      { name: '42', 'meta-type': 'object', members: [{ name: 'uri' }, { name: 'exit-on-error' }] },
    ],
    'human-monitor-command': () =>
      `Block Name    PSize  Offset  Used  Total\nram0   4 KiB  0x0000000000000000 0x${this.ram.length.toString(16)} 0x${this.ram.length.toString(16)} rw\n`,
    'qom-list': ({ path }) => this.objects.children(String(path)),
    'qom-get': ({ path, property }) => this.objects.property(String(path), String(property)),
    device_del: ({ id }) => this.later(() => this.deleteDevice(String(id))),
  };

  // Run state

  cont(): void {
    if (this.status === 'finish-migrate') throw new Refusal('Migration is not finalized yet');
    if (this.status === 'shutdown') throw new Refusal('Resetting the Virtual Machine is required');
    if (this.status === 'inmigrate') this.#autostart = true;
    else if (!this.isRunning) this.#run();
  }

  stop(): void {
    if (this.status === 'inmigrate') this.#autostart = false;
    else if (this.isRunning) this.#pause('paused');
  }

  #run(): void {
    this.status = 'running';
    this.hosts.runs(this);
    this.emit('RESUME');
  }

  #pause(status: string): void {
    this.status = status;
    this.emit('STOP');
  }

  /** As the guest, or another client, resets it. */
  async reset(): Promise<void> {
    for (const device of this.#present) await device.reset();
    if (!['running', 'suspended', 'inmigrate', 'finish-migrate'].includes(this.status))
      this.status = 'prelaunch';
    this.emit('RESET', { guest: false, reason: 'host-qmp-system-reset' });
  }

  /** The guest powers off, and its QEMU stays (-no-shutdown). */
  powerOff(): void {
    this.emit('SHUTDOWN', { guest: true, reason: 'guest-shutdown' });
    this.#pause('shutdown');
  }

  /** Its process is to end. */
  quit(reason: string): void {
    this.later(() => {
      this.emit('SHUTDOWN', { guest: false, reason });
      this.exit();
    });
  }

  deleteDevice(id: string): void {
    this.#deleted.add(id);
    for (const { place, client } of this.devices) if (place.id === id) client.close();
    this.emit('DEVICE_DELETED', { device: id, path: `/machine/peripheral/${id}` });
  }

  /** What is left to do when the process has ended. */
  close(): void {
    this.ended = true;
    this.hosts.listening.forEach((qemu, uri) => {
      if (qemu === this) this.hosts.listening.delete(uri);
    });
    const peer = this.#unlink();
    peer?.later(() => peer.#peerLost());
    for (const device of this.devices) device.close();
    if (this.options.ram === undefined) this.ram.close();
  }

  // Migration

  get #isMigrating(): boolean {
    return !IDLE.includes(this.migration.status);
  }

  #setMigration(status: string, error?: string): void {
    this.migration = error === undefined ? { status } : { status, error };
    if (this.capabilities.get('events') === true) this.emit('MIGRATION', { status });
  }

  #queryMigrate(): object {
    const { status, error } = this.migration;
    if (status === 'active' && !this.#incoming && this.options.switchover !== 'at once')
      this.later(() => this.#switchOver());
    if (status === 'none') return {};
    if (this.#file !== undefined && this.#incoming) this.later(() => this.#read());
    const sent = this.#peer === undefined && !IDLE.includes(status) ? 0 : this.ram.length;
    const ram = { total: this.ram.length, transferred: sent, remaining: 0, mbps: 100 };
    return {
      status,
      ...(error === undefined ? {} : { 'error-desc': error }),
      ...(this.#incoming ? {} : { ram }),
      ...(this.#incomingUri === undefined || status !== 'setup'
        ? {}
        : { 'socket-address': [{ type: 'unix', path: this.#incomingUri.replace(/^unix:/, '') }] }),
    };
  }

  #setCapabilities(capabilities: readonly { capability: string; state: boolean }[]): void {
    // Of a VM that comes QEMU does not mind.
    if (this.#isMigrating && !this.#incoming) throw new Refusal("There's a migration process in progress");
    for (const { capability, state } of capabilities) {
      if (!this.capabilities.has(capability))
        throw new Refusal(`Parameter 'capability' does not accept value`);
      this.capabilities.set(capability, state);
    }
  }

  #migrateIncoming({ uri, 'exit-on-error': exitOnError = true }: Arguments): void {
    if (!this.#incoming || this.status !== 'inmigrate' || this.migration.status !== 'none')
      throw new Refusal("'-incoming' was not specified on the command line");
    this.#exitOnError = exitOnError === true;
    this.#incomingUri = String(uri);
    this.hosts.listening.set(String(uri), this);
    this.#setMigration('setup');
  }

  #migrate(args: Arguments): void {
    if (this.#isMigrating) throw new Refusal("There's a migration process in progress");
    if (this.status === 'inmigrate') throw new Refusal('Guest is waiting for an incoming migration');
    if (this.status === 'postmigrate')
      throw new Refusal("Can't migrate the vm that was paused due to previous migration");
    const { main, cpr } = channelsOf(args);
    if (this.parameters.mode === 'cpr-exec') this.#leaveByFile(main);
    else this.#leaveBySocket(main, cpr);
  }

  #leaveBySocket(main: string, cpr: string | undefined): void {
    if (this.#isCpr && cpr === undefined) throw new Refusal("missing 'cpr' migration channel");
    this.#incoming = false;
    this.#setMigration('setup');
    this.later(() => {
      if (cpr === undefined) this.#connect(main);
      else this.#prepare(cpr, main);
    });
  }

  /** The new QEMU makes its devices, while this one does other things. */
  #prepare(cpr: string, main: string): void {
    const prepare = this.hosts.waiting.get(cpr);
    this.hosts.waiting.delete(cpr);
    const connect = (): void => this.later(() => this.#connect(main));
    if (prepare === undefined) connect();
    else void prepare().then(connect, connect);
  }

  #connect(main: string): void {
    if (this.migration.status !== 'setup') return;
    const peer = this.hosts.listening.get(main);
    if (peer === undefined) {
      this.#fail(`Failed to connect to '${main}': Connection refused`);
      return;
    }
    this.hosts.listening.delete(main);
    this.#peer = peer;
    peer.#peer = this;
    peer.later(() => peer.#setMigration('active'));
    if (this.#isCpr) this.#stand();
    this.#setMigration('active');
    // All of it, once; what is written from now on is to be sent again, if QEMU sees it.
    this.ram.takeTouched();
    if (peer.ram !== this.ram) peer.ram.bytes.set(this.ram.bytes);
    this.later(async () => {
      if (this.isRunning) await this.whileActive();
      if (this.#isCpr || this.options.switchover === 'at once') this.#switchOver();
    });
  }

  get #isCpr(): boolean {
    return this.parameters.mode === 'cpr-transfer';
  }

  /** By cpr-exec. The VM stands when `migrate` is answered. */
  #leaveByFile(uri: string): void {
    if (this.#command.length === 0) throw new Refusal('cpr-exec mode requires setting cpr-exec-command');
    const file = uri.replace(/^file:/, '');
    this.#incoming = false;
    this.#setMigration('setup');
    try {
      writeFileSync(file, '');
    } catch {
      const error = `Could not create '${file}': No such file or directory`;
      this.#fail(error);
      throw new Refusal(error);
    }
    this.#file = file;
    this.#stand();
    this.later(() => {
      if (this.migration.status !== 'setup') return;
      this.#setMigration('active');
      this.later(() => this.#switchOver());
    });
  }

  get #command(): readonly string[] {
    return this.parameters['cpr-exec-command'] as readonly string[];
  }

  /** All is written down: the program takes this one's place. */
  #execute(file: string): void {
    writeFileSync(file, JSON.stringify({ ran: this.#before === 'running' }));
    this.#file = undefined;
    this.status = 'postmigrate';
    this.#setMigration('completed');
    this.later(() => {
      const [path = ''] = this.#command;
      if (this.hosts.programs.has(path)) return this.become(this.#command);
      this.#setMigration('failed', `execvp ${path} failed: No such file or directory`);
      // A VM that was paused stays as it is.
      if (this.#before === 'running') this.#run();
    });
  }

  /** A file that is not there ends it; it is open from now on, whatever becomes of its name. */
  #open(file: string): void {
    const { ran } = JSON.parse(readFileSync(file, 'utf8')) as { ran: boolean };
    this.#before = ran ? 'running' : 'paused';
    this.#file = file;
  }

  /** The VM has come, from the file. */
  #read(): void {
    if (this.#file === undefined) return;
    this.#file = undefined;
    this.#arrive(this.#before);
  }

  #arrive(before: string): void {
    this.status = 'paused';
    if (this.#autostart && before === 'running') this.#run();
    this.#setMigration('completed');
  }

  /** The VM stops to leave. */
  #stand(): void {
    this.#before = this.isRunning ? 'running' : this.status;
    if (this.isRunning) this.#pause('finish-migrate');
    else this.status = 'finish-migrate';
  }

  #switchOver(): void {
    if (this.migration.status !== 'active') return;
    if (this.status !== 'finish-migrate') this.#stand();
    const waits = this.capabilities.get('pause-before-switchover') === true;
    this.#setMigration(waits ? 'pre-switchover' : 'device');
    if (!waits) this.later(() => this.#complete());
  }

  #migrateContinue(): void {
    if (this.migration.status !== 'pre-switchover')
      throw new Refusal('Migration not in expected state: pre-switchover');
    this.#setMigration('device');
    this.later(() => this.#complete());
  }

  #complete(): void {
    const peer = this.#peer;
    if (this.migration.status !== 'device') return;
    if (this.#file !== undefined) this.#execute(this.#file);
    else if (peer === undefined) this.#peerLost();
    else this.#send(peer);
  }

  #send(peer: QemuModel): void {
    peer.ram.copyFrom(this.ram, this.ram.takeTouched());
    peer.later(() => {
      if (peer.migration.status !== 'active' || peer.#peer !== this) return;
      peer.#unlink();
      peer.#arrive(this.#before);
      this.later(() => {
        if (this.migration.status !== 'device') return;
        this.status = 'postmigrate';
        this.#setMigration('completed');
      });
    });
  }

  #cancel(): void {
    if (!this.#isMigrating || this.migration.status === 'device') return;
    const peer = this.#unlink();
    this.#setMigration('cancelling');
    peer?.later(() => peer.#peerLost());
    this.later(() => {
      if (this.migration.status !== 'cancelling') return;
      this.#resumeAfter();
      this.#setMigration('cancelled', 'Switchover is interrupted');
    });
  }

  /** The migration's connection is cut. */
  yank(): void {
    const peer = this.#unlink();
    if (peer === undefined) return;
    this.later(() => this.#peerLost());
    peer.later(() => peer.#peerLost());
  }

  /** QEMU's own migration fails, for a reason that it knows. */
  failMigration(error: string): void {
    const peer = this.#unlink();
    peer?.later(() => peer.#peerLost());
    if (this.#incoming) this.#failIncoming(error);
    else this.#fail(error);
  }

  #unlink(): QemuModel | undefined {
    const peer = this.#peer;
    if (peer !== undefined) peer.#peer = undefined;
    this.#peer = undefined;
    return peer;
  }

  #peerLost(): void {
    if (this.ended || !this.#isMigrating) return;
    if (this.#incoming) this.#failIncoming('load of migration failed: Input/output error');
    // One that waits there only keeps it in mind until it is to continue.
    else if (this.migration.status === 'pre-switchover')
      this.migration = { ...this.migration, error: 'Unable to write to socket: Broken pipe' };
    else this.#fail('Unable to write to socket: Broken pipe');
  }

  #fail(error: string): void {
    this.#setMigration('failing', error);
    this.#resumeAfter();
    this.#setMigration('failed', error);
  }

  /** A source whose migration has not come to its end has its VM as it was. */
  #resumeAfter(): void {
    if (this.status !== 'finish-migrate') return;
    if (this.#before === 'running') this.#run();
    else this.status = this.#before;
  }

  #failIncoming(error: string): void {
    this.hosts.listening.delete(this.#incomingUri ?? '');
    this.#setMigration('failed', error);
    if (this.#exitOnError) this.exit();
  }

  get #present(): PciFunction[] {
    return this.devices.filter(({ place }) => !this.#deleted.has(place.id));
  }

  /** @returns the answer to a line of qtest's, without its end */
  qtest(line: string): Promise<string> {
    return this.#accesses.run(line);
  }
}

interface Channel {
  readonly 'channel-type': string;
  readonly addr: { readonly path: string };
}

/** Where a migration goes: all that it sends, and what the new QEMU needs before. */
function channelsOf({ uri, channels }: Arguments): { main: string; cpr?: string | undefined } {
  if (channels === undefined) return { main: String(uri) };
  const at = (type: string): string | undefined =>
    (channels as Channel[]).find((one) => one['channel-type'] === type)?.addr.path;
  return { main: at('main') ?? '', cpr: at('cpr') };
}
