// SPDX-License-Identifier: Apache-2.0
/**
 * The model of QEMU that the tests of faults run against (test/support/qemu-model.ts) compared with a real QEMU: both are
 * asked the same, command by command, and must accept or refuse alike, answer with the same members, as far as devstate
 * reads them, and say the same events in the same order.
 */
import { openSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { GuestRam, PAGE_SIZE } from '../../src/guest-driver/index.js';
import { QmpClient, QmpCommandError, Qtest, queryRunState, ramBlocks } from '../../src/qemu/index.js';
import { LineSplitter } from '../../src/qemu/line-splitter.js';
import { takesArgument } from '../../src/qemu/qmp-schema.js';
import { Fd } from '../../src/transport/index.js';
import { devicesIn, fileIn, qemuArguments, qmpIn } from '../support/qemu-arguments.js';
import { Hosts } from '../support/qemu-hosts.js';
import { QemuStandIn } from '../support/qemu-stand-in.js';
import { serveScratch, socketFolder } from '../support/served.js';
import { QemuProcess } from './harness/qemu-process.js';
import { requireQemu } from './harness/require-qemu.js';

t.setTimeout(300_000);

const SLOT = 5;
const PROGRAM = '/model/of/qemu';
/** How often a QEMU is asked how far its migration is, ms. */
const ASK_AGAIN_MS = 5;
/** After this time an event that has not come does not come, ms. */
const MISSING_MS = 30_000;
const LONGEST_LINE = 4096;

/** Events that devstate reads. */
const EVENTS = ['STOP', 'RESUME', 'RESET', 'SHUTDOWN', 'MIGRATION', 'DEVICE_DELETED'];

/** One QEMU of a side, as it is asked. */
interface Asked {
  qmp: QmpClient;
  readonly path: string;
  events: string[];
}

/** A real QEMU with those that its VM is migrated to, or their models. */
interface Side {
  readonly folder: string;
  /** The QEMUs by name: `source`, and those that wait for a VM. */
  readonly qemus: Map<string, Asked>;
  /** The command line of a program that takes the place of the source's, without where its VM comes from. */
  readonly command: readonly string[];
  readonly close: () => Promise<void>;
}

type Name = 'source' | 'cancelled' | 'cut' | 'ended' | 'destination';

/** What is asked of one QEMU, and what of the answer is compared. */
interface Step {
  readonly on?: Name;
  readonly command: string;
  readonly args?: Readonly<Record<string, unknown>> | ((side: Side) => Readonly<Record<string, unknown>>);
  /** A descriptor goes with it. */
  readonly fd?: boolean;
  /** What devstate reads of the answer. */
  readonly reads?: (answer: never) => unknown;
  readonly outOfBand?: boolean;
  /** The last event of those that follow, which are compared when it has come. `MIGRATION status`, or a name. */
  readonly until?: string;
  /** Its process is another program then, which is waited for until it has the VM. */
  readonly executes?: boolean;
}

const anyOf = (value: unknown): string => (value === null ? 'null' : typeof value);

/** The types of members. */
const types =
  (...names: readonly string[]) =>
  (answer: Record<string, unknown>) =>
    Object.fromEntries(names.map((name) => [name, anyOf(answer[name])]));

const capabilities = (states: Readonly<Record<string, boolean>>) => ({
  capabilities: Object.entries(states).map(([capability, state]) => ({ capability, state })),
});

/** Of a list, what is so named: all that devstate knows of. */
const statesOf =
  (...names: readonly string[]) =>
  (answer: readonly { capability: string; state: boolean }[]) =>
    Object.fromEntries(names.map((name) => [name, answer.find((one) => one.capability === name)?.state]));

const CAPABILITIES = statesOf(
  ...['events', 'return-path', 'pause-before-switchover', 'postcopy-ram', 'background-snapshot'],
  ...['mapped-ram', 'multifd', 'x-colo', 'x-ignore-shared'],
);
const parameters = ({
  mode,
  'cpr-exec-command': command,
  'downtime-limit': downtime,
  'max-bandwidth': bandwidth,
  'tls-creds': tls,
  'multifd-compression': compression,
}: Record<string, unknown>) => ({ mode, command: anyOf(command), downtime, bandwidth, tls, compression });

const migration = (answer: Record<string, unknown>) => ({
  status: answer.status,
  error: anyOf(answer['error-desc']),
});
const migrationYanked = (answer: readonly { type: string }[]) =>
  answer.some(({ type }) => type === 'migration');
const status = (answer: unknown) => answer;
const childTypes =
  (pattern: RegExp) =>
  (answer: readonly { name: string; type: string }[]): string[] =>
    answer.filter(({ name, type }) => pattern.test(name) || pattern.test(type)).map(({ type }) => type);

const QUERIES: readonly Step[] = [
  { command: 'query-status', reads: status },
  { command: 'query-migrate', reads: migration },
  { command: 'query-migrate-capabilities', reads: CAPABILITIES },
  { command: 'query-migrate-parameters', reads: parameters },
  { command: 'query-yank', reads: migrationYanked, outOfBand: true },
  {
    command: 'query-pci',
    reads: ([bus]: [{ bus: number; devices: Record<string, unknown>[] }]) => [
      bus.bus,
      bus.devices
        .filter(({ qdev_id: id }) => id === 'disk0')
        .map(({ bus, slot, function: func, qdev_id, id, irq_pin }) => ({
          bus,
          slot,
          func,
          qdev_id,
          id: types('vendor', 'device')(id as never),
          irq_pin: anyOf(irq_pin),
        })),
    ],
  },
  {
    command: 'query-chardev',
    reads: ([first]: Record<string, unknown>[]) => types('label', 'filename')(first ?? {}),
  },
  {
    command: 'query-memdev',
    reads: (all: { id: string; share: boolean }[]) => all.map(types('id', 'share')),
  },
  { command: 'query-uuid', reads: types('UUID') },
  { command: 'query-cpus-fast', reads: ([cpu]: Record<string, unknown>[]) => types('qom-path')(cpu ?? {}) },
  { command: 'query-fdsets', reads: status },
  { command: 'qom-list', args: { path: '/machine' }, reads: childTypes(/pcihost/) },
  { command: 'qom-list', args: { path: '/machine/unattached' }, reads: childTypes(/pcihost/) },
  { command: 'qom-list', args: { path: '/machine/peripheral' }, reads: childTypes(/^disk0$/) },
  { command: 'qom-list', args: { path: '/machine/peripheral-anon' }, reads: childTypes(/vfio-user/) },
  {
    command: 'qom-list',
    args: { path: '/machine/peripheral/disk0' },
    reads: (all: { name: string }[]) => all.some(({ name }) => /^vfio-user:\\x2f.+ base BAR \d/.test(name)),
  },
  { command: 'qom-list', args: { path: '/machine/q35' }, reads: childTypes(/^pci-conf-/) },
  { command: 'qom-list', args: { path: '/no/such' } },
  ...['pci-conf-idx[0]', 'pci-conf-data[0]'].flatMap((region) =>
    ['container', 'addr', 'size'].map((property) => ({
      command: 'qom-get',
      args: { path: `/machine/q35/${region}`, property },
      reads: status,
    })),
  ),
  ...['type', 'aux-ram-share'].map((property) => ({
    command: 'qom-get',
    args: { path: '/machine', property },
    reads: anyOf,
  })),
  { command: 'qom-get', args: { path: '/machine/peripheral/disk0', property: 'addr' }, reads: status },
  { command: 'qom-get', args: { path: '/machine/peripheral/disk0', property: 'parent_bus' }, reads: status },
  { command: 'qom-get', args: { path: '/machine/peripheral/disk0', property: 'no-such' } },
  { command: 'qom-get', args: { path: '/no/such', property: 'addr' } },
];

const REFUSED: readonly Step[] = [
  { command: 'no-such-command' },
  { command: 'migrate-continue', args: { state: 'pre-switchover' } },
  { command: 'migrate_cancel' },
  { command: 'yank', args: { instances: [{ type: 'migration' }] }, outOfBand: true },
  { command: 'migrate-set-capabilities', args: capabilities({ 'no-such': true }) },
  { command: 'migrate-incoming', args: { uri: 'unix:/no/such' } },
  { command: 'getfd', args: { fdname: 'x' } },
  { command: 'closefd', args: { fdname: 'x' } },
  { command: 'getfd', args: { fdname: 'x' }, fd: true },
  { command: 'getfd', args: { fdname: 'x' }, fd: true },
  { command: 'closefd', args: { fdname: 'x' } },
  { command: 'add-fd' },
  { command: 'add-fd', args: { 'fdset-id': 7, opaque: 'mine' }, fd: true, reads: types('fdset-id', 'fd') },
  {
    command: 'query-fdsets',
    reads: (sets: { 'fdset-id': number; fds: { fd: number; opaque: string }[] }[]) =>
      sets.map(({ 'fdset-id': set, fds }) => [set, fds.map(({ opaque }) => opaque)]),
  },
  { command: 'remove-fd', args: { 'fdset-id': 7 } },
  { command: 'remove-fd', args: { 'fdset-id': 7 } },
  { command: 'query-fdsets', reads: status },
  { command: 'chardev-remove', args: { id: 'mark' } },
  { command: 'chardev-add', args: { id: 'mark', backend: { type: 'null', data: {} } } },
  { command: 'chardev-add', args: { id: 'mark', backend: { type: 'null', data: {} } } },
  { command: 'chardev-remove', args: { id: 'mark' } },
  {
    command: 'object-add',
    args: { 'qom-type': 'qtest', id: 'devstate-qtest', chardev: 'devstate-qtest-socket' },
  },
];

const CPUS: readonly Step[] = [
  { command: 'cont' },
  { command: 'stop', until: 'STOP' },
  { command: 'stop' },
  { command: 'query-status', reads: status },
  { command: 'system_reset', until: 'RESET' },
  { command: 'query-status', reads: status },
  { command: 'cont', until: 'RESUME' },
  { command: 'system_reset', until: 'RESET' },
  { command: 'query-status', reads: status },
];

const SET: Step = {
  command: 'migrate-set-capabilities',
  args: capabilities({ events: true, 'return-path': true, 'pause-before-switchover': true }),
};

/** What can be asked of a source that waits at `pre-switchover`. */
const STANDING: readonly Step[] = [
  { command: 'query-status', reads: status },
  {
    command: 'query-migrate',
    reads: ({ status, ram }: { status: string; ram: Record<string, unknown> }) => ({
      status,
      ram: types('total', 'transferred', 'remaining', 'mbps')(ram),
    }),
  },
  { command: 'query-yank', reads: migrationYanked, outOfBand: true },
  { command: 'migrate-set-capabilities', args: capabilities({ events: true }) },
  { command: 'migrate-set-parameters', args: { 'downtime-limit': 301 } },
  { command: 'migrate-set-parameters', args: { 'downtime-limit': 300 } },
  { command: 'migrate', args: { uri: 'unix:/no/such' } },
  { command: 'cont' },
  { command: 'stop' },
  { command: 'query-status', reads: status },
];

const CANCEL: readonly Step[] = [
  { command: 'migrate_cancel', until: 'MIGRATION cancelled' },
  { command: 'query-status', reads: status },
  { command: 'query-migrate', reads: migration },
];

const uriOf = (name: string) => (side: Side) => ({ uri: `unix:${join(side.folder, name)}` });

/** A VM on its way to a QEMU that waits for it. */
const toward = (name: Name): readonly Step[] => [
  { on: name, command: 'query-status', reads: status },
  { on: name, command: 'query-migrate', reads: migration },
  { on: name, command: 'stop' },
  {
    on: name,
    command: 'migrate-set-capabilities',
    args: capabilities({ events: true, 'return-path': true }),
  },
  {
    on: name,
    command: 'migrate-incoming',
    args: (side) => ({ ...uriOf(name)(side), 'exit-on-error': false }),
  },
  {
    on: name,
    command: 'query-migrate',
    reads: (answer: { status: string; 'socket-address': Record<string, unknown>[] }) => ({
      status: answer.status,
      at: answer['socket-address'].map(types('type', 'path')),
    }),
  },
  { on: name, command: 'migrate-incoming', args: uriOf(name) },
  { on: name, command: 'query-status', reads: status },
  { command: 'migrate', args: uriOf(name), until: 'MIGRATION pre-switchover' },
  { on: name, command: 'query-status', reads: status },
  { on: name, command: 'query-migrate', reads: migration },
  ...STANDING,
];

const failed = (name: Name): readonly Step[] => [
  { on: name, command: 'query-status', reads: status, until: 'MIGRATION failed' },
  { on: name, command: 'query-migrate', reads: migration },
  { on: name, command: 'cont' },
];

const byFile = ({ folder }: Side) => ({ uri: `file:${join(folder, 'state')}` });

const BY_EXEC: readonly Step[] = [
  {
    command: 'migrate-set-capabilities',
    args: capabilities({ 'return-path': false, 'pause-before-switchover': true }),
  },
  { command: 'migrate-set-parameters', args: { mode: 'cpr-exec' } },
  { command: 'migrate', args: byFile },
  { command: 'migrate-set-parameters', args: { 'cpr-exec-command': ['/no/such', '-S'] } },
  { command: 'query-migrate-parameters', reads: parameters },
  { command: 'migrate', args: { uri: 'file:/no/such/state' }, until: 'MIGRATION failed' },
  { command: 'query-migrate', reads: migration },
  { command: 'migrate', args: byFile, until: 'MIGRATION pre-switchover' },
  ...STANDING,
  ...CANCEL,
  { command: 'migrate', args: byFile, until: 'MIGRATION pre-switchover' },
  { command: 'yank', args: { instances: [{ type: 'migration' }] }, outOfBand: true },
  { command: 'query-migrate', reads: migration },
  { command: 'migrate-continue', args: { state: 'pre-switchover' }, until: 'RESUME' },
  { command: 'query-status', reads: status },
  { command: 'query-migrate', reads: migration },
  { command: 'stop', until: 'STOP' },
  { command: 'migrate', args: byFile, until: 'MIGRATION pre-switchover' },
  { command: 'migrate-continue', args: { state: 'pre-switchover' }, until: 'MIGRATION failed' },
  { command: 'query-status', reads: status },
  { command: 'cont', until: 'RESUME' },
  {
    command: 'migrate-set-parameters',
    args: ({ command, folder }) => ({
      'cpr-exec-command': [...command, '-S', '-incoming', `file:${join(folder, 'state')}`],
    }),
  },
  { command: 'migrate', args: byFile, until: 'MIGRATION pre-switchover' },
  { command: 'migrate-continue', args: { state: 'pre-switchover' }, until: 'closed', executes: true },
  ...QUERIES,
  { command: 'cont', until: 'RESUME' },
  { command: 'query-status', reads: status },
];

const MIGRATED: readonly Step[] = [
  { command: 'migrate', args: { uri: 'unix:/no/such' }, until: 'MIGRATION failed' },
  { command: 'query-migrate', reads: migration },
  ...toward('cancelled'),
  ...CANCEL,
  ...failed('cancelled'),
  ...toward('cut'),
  { command: 'yank', args: { instances: [{ type: 'migration' }] }, outOfBand: true },
  ...failed('cut'),
  { command: 'query-status', reads: status },
  { command: 'query-migrate', reads: migration },
  { command: 'migrate-continue', args: { state: 'pre-switchover' }, until: 'MIGRATION failed' },
  { command: 'query-status', reads: status },
  { command: 'query-migrate', reads: migration },
  ...toward('ended'),
  { on: 'ended', command: 'quit', until: 'closed' },
  { command: 'query-status', reads: status },
  { command: 'query-migrate', reads: ({ status }: { status: string }) => status },
  ...CANCEL,
  ...toward('destination'),
  { on: 'destination', command: 'stop' },
  { command: 'migrate-continue', args: { state: 'pre-switchover' }, until: 'MIGRATION completed' },
  { command: 'query-status', reads: status },
  { command: 'query-migrate', reads: migration },
  { command: 'migrate', args: { uri: 'unix:/no/such' } },
  { command: 'migrate_cancel' },
  { on: 'destination', command: 'query-status', reads: status, until: 'MIGRATION completed' },
  { on: 'destination', command: 'query-status', reads: status },
  { on: 'destination', command: 'query-migrate', reads: migration },
  { command: 'system_reset', until: 'RESET' },
  { command: 'query-status', reads: status },
  { on: 'destination', command: 'cont', until: 'RESUME' },
  { on: 'destination', command: 'query-status', reads: status },
  { command: 'quit', until: 'closed' },
];

const hexadecimal = (value: number): string => `0x${value.toString(16)}`;
/** Selects a register of the device by a PC's latch. */
const select = (register: number): string =>
  `outl 0xcf8 ${hexadecimal(0x8000_0000 + (SLOT << 11) + register)}`;
const BAR = 0xfe00_0000;

/** The VM stands: its firmware uses the same ports. */
const LINES: readonly string[] = [
  ...[select(0), 'inl 0xcf8', 'inl 0xcfc', 'inw 0xcfe', 'inb 0xcfc'],
  // The size of a BAR, and then its place.
  ...[select(4), 'outw 0xcfc 0x0', select(0x10), 'outl 0xcfc 0xffffffff', 'inl 0xcfc'],
  ...[`outl 0xcfc ${hexadecimal(BAR)}`, 'inl 0xcfc', select(0x14), 'inl 0xcfc'],
  // The MSI-X table is there when memory is decoded.
  ...[`readl ${hexadecimal(BAR + 0x800)}`, select(4), 'outw 0xcfc 0x6', 'inw 0xcfc'],
  ...[0, 4, 8, 12].flatMap((at) => [
    `writel ${hexadecimal(BAR + 0x800 + at)} ${hexadecimal(0x1000 + at)}`,
    `readl ${hexadecimal(BAR + 0x800 + at)}`,
  ]),
  ...[select(0x34), 'inb 0xcfc', select(0x3c), 'outb 0xcfc 0xb', 'inb 0xcfc', 'inb 0xcfd'],
  // No device is there.
  ...[`outl 0xcf8 ${hexadecimal(0x8000_0000 + (19 << 11))}`, 'inl 0xcfc', 'outl 0xcf8 0x0', 'inl 0xcfc'],
  ...['nonsense 0x0', 'outl 0xcf8 0x0'],
];

/** Runs the steps. @returns what came of them, to be compared */
async function run(side: Side, steps: readonly Step[]): Promise<string[]> {
  const found: string[] = [];
  for (const step of steps) {
    const { on = 'source', command, args = {}, until } = step;
    const qemu = side.qemus.get(on);
    if (qemu === undefined) throw new Error(`no QEMU is called ${on}`);
    const given = typeof args === 'function' ? args(side) : args;
    const what = typeof args === 'function' ? '' : ` ${JSON.stringify(args)}`;
    found.push(`${on}: ${command}${what}: ${await ask(qemu, step, given)}`);
    if (until !== undefined)
      found.push(
        `${on}: ${await eventsUntil(qemu, until).catch((error: Error) => {
          throw new Error(`after ${found.slice(-3).join('; ')}: ${error.message}`);
        })}`,
      );
    if (step.executes === true) await again(qemu);
  }
  for (const [name, { events }] of side.qemus)
    found.push(`${name}, events at the end: ${events.splice(0).join(', ')}`);
  return found;
}

async function ask(
  { qmp }: Asked,
  { command, reads, fd, outOfBand = false }: Step,
  args: Readonly<Record<string, unknown>>,
): Promise<string> {
  const passed = fd === true ? [new Fd(openSync('/dev/null', 'r'))] : [];
  try {
    const answer = await qmp.execute(command, {
      arguments: args,
      outOfBand,
      ...(passed.length === 0 ? {} : { fds: passed }),
    });
    return reads === undefined ? 'ok' : JSON.stringify(reads(answer as never));
  } catch (error) {
    if (error instanceof QmpCommandError) return error.errorClass;
    // It has ended before it answered.
    if (command === 'quit') return 'ok';
    throw error;
  } finally {
    for (const one of passed) one.close();
  }
}

/** @returns the events that have come until the one that is waited for, in their order */
async function eventsUntil(qemu: Asked, until: string): Promise<string> {
  const deadline = performance.now() + MISSING_MS;
  while (!qemu.events.includes(until)) {
    if (performance.now() > deadline)
      throw new Error(`${until} did not come at ${qemu.path}, but ${qemu.events.join(', ')}`);
    // A model's migration takes a step when it is asked how far it is; a real one takes them all the same.
    await qemu.qmp.execute('query-migrate').catch(() => {});
    await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
  }
  return qemu.events.splice(0).join(', ');
}

function listen(qemu: Asked): void {
  qemu.qmp.onEvent(({ name, data }) => {
    // The firmware may reset the machine itself.
    if (EVENTS.includes(name) && data.guest !== true)
      qemu.events.push(name === 'MIGRATION' ? `MIGRATION ${data.status}` : name);
  });
  qemu.qmp.waitForEvent(() => false).catch(() => qemu.events.push('closed'));
}

/** Connects to the program that was executed, and waits until it has the VM. */
async function again(qemu: Asked): Promise<void> {
  let qmp: QmpClient | undefined;
  while (qmp === undefined) {
    qmp = await QmpClient.connect(qemu.path).catch(() => undefined);
    if (qmp === undefined) await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS));
  }
  qemu.qmp = qmp;
  listen(qemu);
  while ((await queryRunState(qmp)).status === 'inmigrate') await qmp.execute('query-migrate');
}

/** Runs lines of qtest's. @returns each with its answer */
async function runLines({ qmp, path }: Asked, lines: readonly string[]): Promise<string[]> {
  (await Qtest.attach(qmp)).close();
  const socket: Socket = connect(`${path}.qtest`);
  const splitter = LineSplitter.of(socket, LONGEST_LINE);
  const found: string[] = [];
  for (const line of lines) {
    const answer = new Promise<string>((resolve, reject) => {
      splitter.onLine = resolve;
      socket.once('error', reject);
    });
    socket.write(`${line}\n`);
    found.push(`${line}: ${await answer}`);
    socket.removeAllListeners('error');
  }
  socket.destroy();
  return found;
}

const WAITING: readonly Name[] = ['cancelled', 'cut', 'ended', 'destination'];

async function sideOf(
  t: Test,
  start: (name: Name, folder: string, socket: string) => Promise<string>,
  command: (folder: string, socket: string) => Promise<readonly string[]>,
): Promise<Side> {
  const folder = socketFolder(t);
  const qemus = new Map<string, Asked>();
  let socket = '';
  for (const name of ['source', ...WAITING] as const) {
    const served = serveScratch(t, { stateSize: 4096, vectors: 2 });
    if (name === 'source') {
      socket = served.path;
      const manager = await served.manager();
      // The program that is executed connects to it too.
      await manager.setNextVmm({ action: 'await', timeoutMs: 600_000 }).catch(() => {});
    }
    const path = await start(name, folder, served.path);
    const asked: Asked = { qmp: await QmpClient.connect(path), path, events: [] };
    listen(asked);
    qemus.set(name, asked);
  }
  const close = async (): Promise<void> => {
    for (const { qmp } of qemus.values()) qmp.close();
  };
  return { folder, qemus, command: await command(folder, socket), close };
}

async function realSide(t: Test): Promise<Side | undefined> {
  const qemu = await requireQemu(t);
  if (qemu === undefined) return undefined;
  const machine = (socket: string) => ({
    memoryMiB: 64,
    replaceable: true,
    reboots: true,
    vfioUser: [{ id: 'disk0', socket, addr: '05.0' }],
  });
  let source: QemuProcess | undefined;
  return sideOf(
    t,
    async (name, _, socket) => {
      const vm = await QemuProcess.start(qemu, { ...machine(socket), incoming: name !== 'source' });
      t.teardown(() => vm.kill());
      source ??= vm;
      return vm.qmpPath;
    },
    async (_, socket) => (await QemuProcess.plan(qemu, machine(socket), source)).command,
  );
}

function modelSide(t: Test): Promise<Side> {
  const hosts = new Hosts();
  const made: QemuStandIn[] = [];
  const start = async (path: string, options: Parameters<typeof QemuStandIn.start>[1]): Promise<string> => {
    const qemu = await QemuStandIn.start(path, options);
    made.push(qemu);
    return path;
  };
  t.teardown(async () => {
    for (const qemu of made.reverse()) await qemu.close();
  });
  const configWay = 'ports';
  // It stays when a program is executed.
  const ram = new GuestRam(16 * PAGE_SIZE);
  t.teardown(() => ram.close());
  hosts.programs.set(PROGRAM, async (args) => {
    const [devices, incoming] = [devicesIn(args), { from: fileIn(args) }];
    await start(qmpIn(args), { name: 'the program', hosts, ram, devices, incoming, configWay });
  });
  return sideOf(
    t,
    (name, folder, socket) =>
      start(join(folder, `${name}.qmp`), {
        ...{ name, hosts, configWay, ...(name === 'source' ? { ram } : {}) },
        devices: [{ id: 'disk0', slot: SLOT, socket }],
        incoming: name !== 'source',
      }),
    async (folder, socket) => [
      PROGRAM,
      ...qemuArguments(join(folder, 'source.qmp'), { id: 'disk0', slot: SLOT, socket }),
    ],
  );
}

t.test('the model answers as QEMU does', async (t) => {
  const real = await realSide(t);
  if (real === undefined) return;
  const model = await modelSide(t);
  const both = async (t: Test, steps: readonly Step[]): Promise<void> => {
    const [wanted, found] = [await run(real, steps), await run(model, steps)];
    t.same(found, wanted);
  };
  const sources = [real, model].map(({ qemus }) => qemus.get('source')!);
  await t.test('queries', (t) => both(t, QUERIES));
  await t.test('what else is read of them', async (t) => {
    for (const { qmp } of sources) {
      t.ok(await takesArgument(qmp, 'migrate-incoming', 'exit-on-error'));
      t.ok((await ramBlocks(qmp)).every(({ used }) => used > 0));
    }
  });
  await t.test('what is refused or undone', (t) => both(t, [SET, ...REFUSED]));
  await t.test('CPUs', (t) => both(t, CPUS));
  await t.test("qtest's lines", async (t) => {
    await both(t, [{ command: 'stop', until: 'STOP' }]);
    const [wanted, found] = [await runLines(sources[0]!, LINES), await runLines(sources[1]!, LINES)];
    t.same(found, wanted);
    await both(t, [{ command: 'cont', until: 'RESUME' }]);
  });
  await t.test('cpr-exec', (t) => both(t, BY_EXEC));
  await t.test('migrations', (t) => both(t, [SET, ...MIGRATED]));
  await real.close();
  await model.close();
});
