// SPDX-License-Identifier: Apache-2.0
/**
 * A model of a QEMU, as far as migrating a VM and asking about it goes. It knows commands, events and qtest's words, not
 * how they come: {@link QemuStandIn} speaks for it.
 *
 * What it models (of QEMU 11.1):
 *
 *     run state       running, paused, inmigrate, finish-migrate, postmigrate, prelaunch, suspended, shutdown; with STOP,
 *                     RESUME, RESET, SHUTDOWN, DEVICE_DELETED
 *     migration       source: setup → active → pre-switchover → device → completed | cancelling → cancelled | failed
 *                     destination: setup → active → completed | failed; with MIGRATION. RAM is copied, twice
 *     cpr-transfer    the VM stops first; the new QEMU makes its devices when the old one has reached it, RAM is the same
 *     settings        capabilities and parameters, set and shown; capabilities not while a migration is under way
 *     devices         {@link PciFunction}s: real clients of real servers, on an ECAM or a PC's ports
 *     objects         as much of QOM as finds devices, their places and sockets, and the way to configuration space
 *
 * What it does not: guests, CPUs, memory that is unplugged, other devices, postcopy, multifd, TLS, cpr-exec, and time: a
 * migration waits in `active` until it is asked how far it is (`--switchover`), and takes no step while it is not asked
 * anything.
 */
import { GuestRam, PAGE_SIZE } from '../../src/guest-driver/index.js';
import { type FunctionPlace, PciFunction } from './pci-function.js';

export const ECAM = 0xb000_0000;
const ECAM_BUSES = 4;
const CONFIG_ADDRESS = 0xcf8;
const CONFIG_DATA = 0xcfc;
const RAM_BYTES = 16 * PAGE_SIZE;
const IDLE = ['none', 'completed', 'failed', 'cancelled'];
const OPEN_CLASS = 'GenericError';

type Arguments = Readonly<Record<string, unknown>>;

/** QEMU's refusal of a command. */
export class Refusal extends Error {
  readonly errorClass: string;
  constructor(description: string, errorClass = OPEN_CLASS) {
    super(description);
    this.errorClass = errorClass;
  }
}

/** What connects the QEMUs of one test: who listens where, and how often two of them ran the one VM. */
export class Hosts {
  readonly listening = new Map<string, QemuModel>();
  /** Processes that wait at a cpr channel: what they do when the old QEMU reaches them. Settles when they listen. */
  readonly waiting = new Map<string, () => Promise<void>>();
  readonly qemus: QemuModel[] = [];
  /** Moments at which the VM ran twice. Empty, or something is very wrong. */
  readonly twice: string[] = [];

  /** A VM's CPUs begin to run. */
  runs(qemu: QemuModel): void {
    const others = this.qemus.filter((other) => other !== qemu && other.isRunning);
    if (others.length > 0) this.twice.push(`${qemu.name} begins to run while ${others[0]?.name} runs`);
  }
}

export interface QemuModelOptions {
  /** For messages. */
  readonly name: string;
  readonly hosts: Hosts;
  readonly devices: readonly FunctionPlace[];
  /** It waits for a VM: where `migrate-incoming` says (`-incoming defer`), or here, and stops when it has come (`-S`). */
  readonly incoming?: boolean | { readonly at: string };
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
  /** Work of its own, that comes when the command under way was answered. */
  later: (work: () => void | Promise<void>) => void = () => {};
  /** A descriptor that was given under a name becomes a server. */
  listen: (name: string) => void = () => {};
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
  };
  readonly chardevs = new Map<string, string>([['compat_monitor0', 'unix:/monitor,server=on']]);
  readonly objects = new Map<string, string>([['ram0', 'memory-backend-memfd']]);
  readonly #deleted = new Set<string>();
  /** The other end of the migration under way. */
  #peer: QemuModel | undefined;
  #autostart: boolean;
  /** How the VM was when the migration had it stopped. */
  #before = 'running';
  #exitOnError = true;
  #latch = 0;
  #incomingUri: string | undefined;

  private constructor(options: QemuModelOptions) {
    this.options = options;
    this.name = options.name;
    this.hosts = options.hosts;
    this.ram = options.ram ?? new GuestRam(RAM_BYTES);
    this.#autostart = !this.#incoming;
    this.status = this.#incoming ? 'inmigrate' : 'running';
    this.hosts.qemus.push(this);
  }

  /** A VM that runs, or a QEMU that waits for one. */
  static async start(options: QemuModelOptions): Promise<QemuModel> {
    const qemu = new QemuModel(options);
    for (const place of options.devices) qemu.devices.push(await PciFunction.realize(place, qemu.ram));
    if (typeof options.incoming === 'object') {
      qemu.hosts.listening.set(options.incoming.at, qemu);
      qemu.#setMigration('setup');
    }
    return qemu;
  }

  get isRunning(): boolean {
    return !this.ended && (this.status === 'running' || this.status === 'suspended');
  }

  get #incoming(): boolean {
    return this.options.incoming !== undefined && this.options.incoming !== false;
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
    yank: () => this.yank(),
    cont: () => this.cont(),
    stop: () => this.stop(),
    system_reset: () => this.later(() => this.reset()),
    quit: () => this.quit('host-qmp-quit'),
    'query-chardev': () => [...this.chardevs].map(([label, filename]) => ({ label, filename })),
    'chardev-add': (args) => this.#addChardev(args as unknown as ChardevArguments),
    'chardev-remove': ({ id }) => {
      if (!this.chardevs.delete(String(id))) throw new Refusal(`Chardev '${id}' not found`);
    },
    'object-add': ({ 'qom-type': type, id }) => {
      if (this.objects.has(String(id))) throw new Refusal(`attempt to add duplicate property '${id}'`);
      this.objects.set(String(id), String(type));
    },
    'query-pci': () => [{ bus: 0, devices: this.#present.map((device) => this.#listed(device)) }],
    'query-memdev': () => [{ id: 'ram0', size: this.ram.length, share: true, dump: true, prealloc: false }],
    'query-uuid': () => ({ UUID: '7f1d8d46-7a31-4d4a-9c6c-9cfa6f1a5b11' }),
    'query-name': () => ({ name: 'guest' }),
    'query-cpus-fast': () => [{ 'qom-path': '/machine/unattached/device[0]', target: 'x86_64' }],
    'query-qmp-schema': () => [
      { name: 'migrate-incoming', 'meta-type': 'command', 'arg-type': '42' },
      { name: '42', 'meta-type': 'object', members: [{ name: 'uri' }, { name: 'exit-on-error' }] },
    ],
    'query-fdsets': () => [],
    'human-monitor-command': () =>
      `Block Name    PSize  Offset  Used  Total\nram0   4 KiB  0x0000000000000000 0x${this.ram.length.toString(16)} 0x${this.ram.length.toString(16)} rw\n`,
    'qom-list': ({ path }) => this.#children(String(path)),
    'qom-get': ({ path, property }) => this.#property(String(path), String(property)),
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
    if (this.#isCpr && cpr === undefined) throw new Refusal("missing 'cpr' migration channel");
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
    if (this.migration.status !== 'device' || peer === undefined) return;
    peer.ram.copyFrom(this.ram, this.ram.takeTouched());
    peer.later(() => {
      if (peer.migration.status !== 'active' || peer.#peer !== this) return;
      peer.#unlink();
      peer.status = 'paused';
      if (peer.#autostart && this.#before === 'running') peer.#run();
      peer.#setMigration('completed');
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
      this.#setMigration('cancelled');
      this.#resumeAfter();
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
    else this.#fail('Unable to write to socket: Broken pipe');
  }

  #fail(error: string): void {
    this.#setMigration('failed', error);
    this.#resumeAfter();
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

  // Devices and objects

  get #present(): PciFunction[] {
    return this.devices.filter(({ place }) => !this.#deleted.has(place.id));
  }

  #listed({ place: { id, slot }, vendorId, deviceId }: PciFunction): object {
    return { bus: 0, slot, function: 0, qdev_id: id, id: { vendor: vendorId, device: deviceId }, irq_pin: 1 };
  }

  #addChardev({ id, backend }: ChardevArguments): void {
    if (this.chardevs.has(id)) throw new Refusal(`Chardev with id '${id}' already exists`);
    const { addr } = backend.data;
    if (addr?.type === 'fd') {
      this.listen(String(addr.data.str));
      this.chardevs.set(id, `disconnected:unix:${this.qtestPath},server=on`);
    } else this.chardevs.set(id, backend.type);
  }

  /** Where the qtest server listens, as its socket says. */
  qtestPath = '';

  #children(path: string): { name: string; type: string }[] {
    const child = (name: string, type: string) => ({ name, type: `child<${type}>` });
    const bridge = `/machine/${this.#bridge}`;
    if (path === '/objects') return [...this.objects].map(([name, type]) => child(name, type));
    if (path === '/machine')
      return [child(this.#bridge, `${this.#bridge}host`), child('peripheral', 'container')];
    if (path === '/machine/unattached' || path === '/machine/peripheral-anon') return [];
    if (path === '/machine/peripheral')
      return this.#present.map(({ place }) => child(place.id, 'vfio-user-pci'));
    if (path === bridge) return this.#regions.map(({ name }) => child(name, 'memory-region'));
    const device = this.#present.find(({ place }) => path === `/machine/peripheral/${place.id}`);
    if (device === undefined) throw new Refusal(`Device '${path}' not found`, 'DeviceNotFound');
    const socket = device.place.socket.replaceAll('/', '\\x2f');
    return [child(`vfio-user:${socket} base BAR 0[0]`, 'memory-region'), { name: 'addr', type: 'int32' }];
  }

  get #bridge(): string {
    return this.options.configWay === 'ports' ? 'i440FX-pci' : 'gpex-pcie';
  }

  get #regions(): { name: string; container: string; addr: number; size: number }[] {
    const io = '/machine/unattached/io[0]';
    if (this.options.configWay === 'ports')
      return [
        { name: 'pci-conf-idx[0]', container: io, addr: CONFIG_ADDRESS, size: 4 },
        { name: 'pci-conf-data[0]', container: io, addr: CONFIG_DATA, size: 4 },
      ];
    const memory = '/machine/unattached/system[0]';
    return [{ name: 'pcie-ecam[0]', container: memory, addr: ECAM, size: ECAM_BUSES * 2 ** 20 }];
  }

  #property(path: string, property: string): unknown {
    const bridge = `/machine/${this.#bridge}`;
    const region = this.#regions.find(({ name }) => path === `${bridge}/${name}`);
    const device = this.#present.find(({ place }) => path === `/machine/peripheral/${place.id}`);
    const found: Record<string, unknown> = {
      ...(region === undefined ? {} : { container: region.container, addr: region.addr, size: region.size }),
      ...(device === undefined ? {} : { addr: device.place.slot << 3, parent_bus: `${bridge}/pcie.0` }),
      ...(path === '/machine' ? { type: 'virt-machine', 'aux-ram-share': true } : {}),
      ...(path === '/objects/ram0' ? { type: 'memory-backend-memfd' } : {}),
      ...(path === '/machine/unattached/device[0]' ? { type: 'max-x86_64-cpu' } : {}),
    };
    if (property in found) return found[property];
    throw new Refusal(`Property '${path}.${property}' not found`);
  }

  // qtest

  /** @returns the answer to a line, without its end */
  async qtest(line: string): Promise<string> {
    const [operation = '', place = '', written] = line.split(' ');
    const address = Number(place);
    const length = { b: 1, w: 2, l: 4 }[operation.at(-1) ?? ''] ?? 4;
    const ok = (value: number) => `OK 0x${value.toString(16).padStart(16, '0')}`;
    const isPort = operation.startsWith('in') || operation.startsWith('out');
    if (isPort && address === CONFIG_ADDRESS) {
      if (written === undefined) return ok(this.#latch);
      this.#latch = Number(written);
      return 'OK';
    }
    const at = isPort ? this.#atPorts(address) : this.#atEcam(address);
    if (at !== undefined) {
      if (written === undefined) return ok(await at.device.readConfig(at.offset, length));
      await at.device.writeConfig(at.offset, length, Number(written));
      return 'OK';
    }
    const word = this.#present.map((device) => device.wordAt(address)).find((one) => one !== undefined);
    if (written === undefined) return ok(word?.getUint32(0, true) ?? 0xffffffff);
    word?.setUint32(0, Number(written), true);
    return 'OK';
  }

  #atPorts(port: number): { device: PciFunction; offset: number } | undefined {
    if (port < CONFIG_DATA || port >= CONFIG_DATA + 4 || this.#latch < 0x8000_0000) return undefined;
    return this.#at(this.#latch & 0xffff00, (this.#latch & 0xfc) + port - CONFIG_DATA);
  }

  #atEcam(address: number): { device: PciFunction; offset: number } | undefined {
    const offset = address - ECAM;
    if (offset < 0 || offset >= ECAM_BUSES * 2 ** 20) return undefined;
    return this.#at((offset >>> 12) << 8, offset & 0xfff);
  }

  /** @param where bus, slot and function as in a PC's latch */
  #at(where: number, offset: number): { device: PciFunction; offset: number } | undefined {
    const device = this.#present.find(({ place }) => place.slot << 11 === where);
    return device === undefined || offset >= 256 ? undefined : { device, offset };
  }
}

interface ChardevArguments {
  readonly id: string;
  readonly backend: {
    readonly type: string;
    readonly data: { readonly addr?: { readonly type: string; readonly data: { readonly str?: string } } };
  };
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
