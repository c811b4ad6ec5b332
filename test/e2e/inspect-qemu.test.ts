// SPDX-License-Identifier: Apache-2.0
/**
 * Migration streams that a real QEMU writes: a Linux guest whose NVMe disk a device server provides, and a helper that
 * puts the state of that device into the stream.
 */
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { ExitCode } from '../../src/errors.js';
import type { ContentReport, ContentSection, FieldMap, Inspection } from '../../src/formats/index.js';
import {
  MigrationWatch,
  type QmpClient,
  queryMigration,
  queryRunState,
  resumeVm,
  startMigration,
} from '../../src/qemu/index.js';
import { MAIN } from '../support/main.js';
import { PrivateBus, requireDbusDaemon } from './harness/dbus-daemon.js';
import { VmStateHelper } from './harness/dbus-vmstate.js';
import { devstate } from './harness/devstate-process.js';
import { MigrationLab } from './harness/lab.js';
import { QemuProcess } from './harness/qemu-process.js';
import { requireQemu } from './harness/require-qemu.js';

t.setTimeout(900_000);

const CHUNK = 1 << 16;
/** CR0.PG */
const PAGING = 1 << 31;

/** What the command finds, from the file or through a pipe. Its sections lie one behind the other. */
function inspectFile(path: string, { pipe = false, exitCode = 0 } = {}): ContentReport {
  const args = [MAIN, 'inspect', pipe ? '-' : path, '-o', 'json'];
  const stdin = pipe ? openSync(path, 'r') : undefined;
  try {
    // A file as stdin is read as a pipe is, from its beginning to its end.
    const { status, stdout, stderr } = spawnSync(process.execPath, args, {
      stdio: [stdin ?? 'ignore', 'pipe', 'pipe'],
      encoding: 'utf8',
      maxBuffer: 1 << 30,
    });
    if (status !== exitCode) throw new Error(`devstate inspect ended with ${status}: ${stderr}`);
    const found: Inspection = JSON.parse(stdout);
    if (found.kind !== 'content') throw new Error(`${path} is ${found.kind}, no migration stream`);
    return found.content;
  } finally {
    if (stdin !== undefined) closeSync(stdin);
  }
}

/** Lets QEMU migrate, and waits for its end; `meanwhile` runs when it has begun. */
async function migrateTo(
  qmp: QmpClient,
  uri: string,
  set: { [capability: string]: boolean } = {},
  meanwhile?: () => Promise<void>,
): Promise<void> {
  const capabilities = Object.entries({ ...set, events: true }).map(([capability, state]) => ({
    capability,
    state,
  }));
  await qmp.execute('migrate-set-capabilities', { arguments: { capabilities } });
  const watch = new MigrationWatch(qmp);
  try {
    await startMigration(qmp, uri);
    await meanwhile?.();
    await watch.waitFor('completed');
    // QEMU says so before it has closed the file.
    while ((await queryRunState(qmp)).status === 'finish-migrate');
  } finally {
    watch.close();
  }
}

interface Described {
  page_size: number;
  devices: { name: string; instance_id: number; fields: unknown[] }[];
}

/** QEMU's own words on what it wrote: the JSON in the section `vmdescription`. */
function description(path: string, section: ContentSection | undefined): Described {
  const bytes = readFileSync(path);
  const { offset = 0, size = 0 } = section ?? {};
  return JSON.parse(bytes.toString('utf8', offset + 5, offset + size));
}

/** What must hold of every whole stream of QEMU's. */
function checkWhole(t: Test, path: string, report: ContentReport): readonly ContentSection[] {
  const { sections } = report;
  t.equal(report.error, null);
  t.equal(report.size, statSync(path).size);
  let end = 0;
  for (const { name, offset, size } of sections) {
    if (offset !== end || size === 0) t.fail(`${name} is not where the section before ends`);
    end = offset + size;
  }
  t.equal(end, statSync(path).size, 'the sizes of the sections add up to that of the file');
  t.same(
    sections.filter(({ name }) => name === null),
    [],
    'nothing is unknown',
  );
  const devices = sections.filter(({ fields }) => fields.section === 'FULL');
  const described = description(path, sections.at(-1));
  t.same(
    devices.map(({ name, fields }) => [name, fields.instance]),
    described.devices.map(({ name, instance_id }) => [name, instance_id]),
    'the devices are those that QEMU describes, in its order',
  );
  for (const { name, fields } of devices) {
    if (!name?.includes('dbus-vmstate')) t.type(fields.state, 'object', `${name} has fields`);
  }
  t.same(inspectFile(path, { pipe: true }), report, 'the same through a pipe');
  return sections;
}

/** The text of the command: it fits a screen, names the sections with their sizes, and the blob within. */
function checkText(t: Test, path: string): void {
  for (const options of [[], ['--fields']]) {
    const { stdout } = spawnSync(process.execPath, [MAIN, 'inspect', path, ...options], {
      encoding: 'utf8',
      maxBuffer: 1 << 30,
    });
    const wrong = stdout.split('\n').filter((line) => [...line].length > 80 || /\p{C}/u.test(line));
    t.same(wrong, [], 'lines of at most 80 columns');
    t.match(stdout, /^Format: +QEMU migration stream\n/);
    t.match(stdout, /─ dbus-vmstate\/dbus-vmstate +[\d.]+ (B|KiB) @\d+\n/);
    t.match(stdout, /is envelope of org\.devstate\.nvme\.alder 1\.0\n/);
  }
}

t.test('a Linux guest with a disk of ours, and a helper', async (t) => {
  const daemon = await requireDbusDaemon(t);
  if (daemon === undefined) return;
  const lab = await MigrationLab.create(t, { memoryMiB: 128, restless: true });
  if (lab === undefined) return;
  const server = await lab.serve('a');
  const vm = await lab.startVm({ server });
  await lab.guestWrites(vm);
  const blobPath = `${lab.directory}/state`;
  const prove = ['--qmp', vm.qmpPath, '--device', 'disk0'];
  const where = ['--migration-socket', server.migrationSocket, '-o', blobPath];
  const saved = await devstate('save', ...where, ...prove);
  t.equal(saved.code, 0, 'devstate save', { stderr: saved.stderr });
  const blob = readFileSync(blobPath);

  const bus = await PrivateBus.start(daemon, lab.directory);
  t.teardown(() => bus.stop());
  const helper = await VmStateHelper.start(bus.address, 'disk0', () => blob);
  t.teardown(() => helper.close());
  const object = { 'qom-type': 'dbus-vmstate', id: 'helpers', addr: bus.address, 'id-list': 'disk0' };
  await vm.qmp.execute('object-add', { arguments: object });
  const limit = (parameters: { [name: string]: number }) =>
    vm.qmp.execute('migrate-set-parameters', { arguments: parameters });
  // At this rate it never expects to be done in time, so that it goes over memory again and again.
  await limit({ 'max-bandwidth': 48 << 20, 'avail-switchover-bandwidth': 1 });
  const path = `${lab.directory}/stream`;
  await migrateTo(vm.qmp, `file:${path}`, { xbzrle: true }, async () => {
    while ((await queryMigration(vm.qmp)).ram.passes < 4);
    await limit({ 'max-bandwidth': 0, 'avail-switchover-bandwidth': 0 });
  });
  t.equal(helper.saves, 1);

  const report = inspectFile(path);
  const sections = checkWhole(t, path, report);
  t.match(report.fields, { machine: /^pc-q35-/, version: 3 });
  const parts = sections.filter(({ fields }) => fields.section === 'PART');
  t.ok(parts.length > 5, `${parts.length} parts of memory`);
  t.ok(
    parts.reduce((pages, { fields }) => pages + Number(fields.pages ?? 0), 0) > 1000,
    'memory was written',
  );
  t.ok(sections.some(({ fields }) => fields.command === 'SWITCHOVER_START'));

  const helpers = sections.find(({ name }) => name === 'dbus-vmstate/dbus-vmstate');
  t.equal(helpers?.fields.helpers, 1);
  const [disk, padding] = helpers?.sections ?? [];
  t.match(disk, { name: 'disk0', fields: { length: blob.length }, extract: 'dbus-vmstate.disk0.bin' });
  const inside = disk?.content;
  t.match(inside, {
    kind: 'envelope',
    size: blob.length,
    fields: { model: 'devstate.org/nvme', format: { name: 'org.devstate.nvme.alder' }, digest: { ok: true } },
    error: null,
  });
  t.match(inside?.sections.find(({ name }) => name === 'queues')?.fields, {
    submission: Array,
    completion: Array,
  });
  t.equal(
    inside?.sections.reduce((sum, { size }) => sum + size, 0),
    blob.length,
    'its sections add up to the blob',
  );
  checkText(t, path);
  const directory = `${lab.directory}/extracted`;
  const extracted = await devstate('inspect', path, '--extract', directory);
  t.equal(extracted.code, 0, 'devstate inspect --extract', { stderr: extracted.stderr });
  t.ok(readFileSync(`${directory}/dbus-vmstate.disk0.bin`).equals(blob), "the helper's blob, byte for byte");
  t.match(padding, { name: 'padding', fields: { zero: true } }, 'QEMU sends what it had in reserve');
  t.comment(
    `${report.size} bytes, ${sections.length} sections, ${parts.length} of them iterations of memory`,
  );

  const cpu = sections.find(({ name }) => name === 'cpu')?.fields.state as FieldMap;
  t.ok(Number(cpu['env.cr[0]']) & PAGING, 'Linux has paging on');
});

t.test('capabilities that change the stream', async (t) => {
  const qemu = await requireQemu(t);
  if (qemu === undefined) return;
  // A user-mode network and devices of many kinds: more of QEMU's types of fields.
  const devices = ['virtio-net-pci,netdev=net', 'virtio-balloon-pci', 'e1000e', 'qemu-xhci', 'intel-hda'];
  const vm = await QemuProcess.start(qemu, {
    memoryMiB: 64,
    extra: [
      ...['-smp', '2', '-uuid', '00112233-4455-6677-8899-aabbccddeeff', '-netdev', 'user,id=net'],
      ...devices.flatMap((name) => ['-device', name]),
      ...['-blockdev', 'driver=null-co,node-name=disk,size=1073741824,read-zeroes=on'],
    ],
  });
  t.teardown(() => vm.kill());
  const bitmap = { node: 'disk', name: 'backup' };
  await vm.qmp.execute('block-dirty-bitmap-add', { arguments: bitmap });
  const off = {
    'dirty-bitmaps': false,
    'mapped-ram': false,
    multifd: false,
    xbzrle: false,
    'x-ignore-shared': false,
    'validate-uuid': false,
    'background-snapshot': false,
  };
  const cases: { name: string; set: { [capability: string]: boolean }; capabilities?: string[] }[] = [
    { name: 'none', set: {} },
    { name: 'xbzrle', set: { xbzrle: true } },
    { name: 'dirty-bitmaps', set: { 'dirty-bitmaps': true } },
    { name: 'validate-uuid', set: { 'validate-uuid': true } },
    { name: 'x-ignore-shared', set: { 'x-ignore-shared': true }, capabilities: ['x-ignore-shared'] },
    { name: 'mapped-ram', set: { 'mapped-ram': true }, capabilities: ['mapped-ram'] },
    { name: 'multifd', set: { 'mapped-ram': true, multifd: true }, capabilities: ['mapped-ram'] },
    { name: 'background-snapshot', set: { 'background-snapshot': true } },
  ];
  for (const { name, set, capabilities = [] } of cases) {
    await t.test(name, async (t) => {
      const path = vm.path(`${name}.stream`);
      await migrateTo(vm.qmp, `file:${path}`, { ...off, ...set });
      await resumeVm(vm.qmp);
      const report = inspectFile(path);
      const { fields } = report;
      t.same(fields.capabilities, capabilities);
      const [, configuration, memory] = report.sections;
      if (name === 'validate-uuid') {
        t.equal(configuration?.sections[0]?.fields.uuid, '00112233-4455-6677-8899-aabbccddeeff');
      }
      if (name === 'dirty-bitmaps') {
        const bitmaps = report.sections.find(({ name }) => name === 'dirty-bitmap')?.fields.bitmaps;
        t.same(bitmaps, ['disk/backup']);
      }
      if (capabilities.includes('mapped-ram')) {
        t.match(memory?.sections[0], { name: 'mem', fields: { length: 64 << 20, pageSize: 4096 } });
        t.equal(memory?.sections.length, Object.keys(memory?.fields.blocks ?? {}).length);
      }
      const kinds = checkWhole(t, path, report).flatMap(({ name, fields }) =>
        name === 'ram' ? [fields.section] : [],
      );
      // What runs on writes its memory until the end, and has no last pass.
      const last = name === 'background-snapshot' ? 'PART' : 'END';
      t.same([kinds[0], kinds.at(-1)], ['START', last]);
      t.ok(kinds.slice(1, -1).every((kind) => kind === 'PART'));
    });
  }
  const piped = vm.path('piped');
  const zeros = { 'zero-page-detection': 'none' };
  await vm.qmp.execute('migrate-set-parameters', { arguments: zeros });
  await migrateTo(vm.qmp, `exec:cat > ${piped}`, off);
  const memory = checkWhole(t, piped, inspectFile(piped)).filter(({ name }) => name === 'ram');
  t.ok(memory.every(({ fields }) => fields.zeroPages === undefined));
  t.ok(memory.reduce((sum, { size }) => sum + size, 0) > 64 << 20, 'all of memory is in it');
});

t.test('a QEMU that is killed leaves a stream that stops', async (t) => {
  const qemu = await requireQemu(t);
  if (qemu === undefined) return;
  const vm = await QemuProcess.start(qemu, { memoryMiB: 64 });
  t.teardown(() => vm.kill());
  const path = join(t.testdir(), 'stream');
  await vm.qmp.execute('migrate-set-parameters', { arguments: { 'max-bandwidth': 1 << 20 } });
  await startMigration(vm.qmp, `file:${path}`);
  while ((statSync(path, { throwIfNoEntry: false })?.size ?? 0) < 2 * CHUNK) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await vm.kill();
  const { size, error, sections } = inspectFile(path, { exitCode: ExitCode.corrupt });
  t.match(error, { code: 'DEVSTATE_E_CONTENT_TRUNCATED', offset: size });
  t.match(sections.at(-1), { name: 'ram', fields: { section: 'PART' } });
});
