// SPDX-License-Identifier: Apache-2.0
/** Live migrations of a Linux guest that writes to an NVMe disk of ours all the time, between stock QEMUs. */
import { open } from 'node:fs/promises';
import t, { type Test } from 'tap';
import type { MigrateResult } from '../../src/operations/index.js';
import { queryMigration, queryRunState, resumeVm, stopVm } from '../../src/qemu/index.js';
import { z } from '../../src/zod.js';
import { Devstate } from './harness/devstate-process.js';
import { type LabServer, type LabVm, MigrationLab } from './harness/lab.js';
import { crc32 } from './harness/written-image.js';

/** Longest that all of it may take, on a slow machine. */
const TIMEOUT_MS = 900_000;
/** How often the image's lock is looked at. */
const SAMPLE_MS = 5;

t.setTimeout(TIMEOUT_MS);

const ms = z.number().nonnegative();
const count = z.int().nonnegative();

/** What `devstate migrate -o json` prints. Strict: a field that is new has to be documented, and added here. */
const Result = z.strictObject({
  status: z.literal('completed'),
  running: z.boolean(),
  phases: z.strictObject({ check: ms, precopy: ms, switchover: ms, land: ms, commit: ms }),
  totalMs: ms,
  downtime: z.strictObject({
    totalMs: ms,
    quiesceMs: ms,
    captureMs: ms,
    saveMs: ms,
    dirtyLogMs: ms,
    qemuMs: ms,
    loadMs: ms,
    pagesMs: ms,
    replayMs: ms,
    resumeMs: ms,
    devstateMs: ms,
  }),
  expected: z.strictObject({
    totalMs: ms.positive(),
    fixedMs: ms.positive(),
    pagesMs: ms,
    qemuMs: ms.positive(),
    devices: z.array(
      z.strictObject({
        id: z.string(),
        pageBytes: count,
        dirtyBytesPerSecond: count,
        copyBytesPerSecond: count,
        copiedBy: z.enum(['mapped', 'messages']),
        byMessage: z.boolean(),
      }),
    ),
  }),
  bytes: z.strictObject({ ram: count.positive(), precopy: count, stop: count.positive(), pages: count }),
  dirtyPages: count,
  devices: z.array(
    z.strictObject({
      id: z.string(),
      model: z.literal('devstate.org/nvme'),
      format: z.strictObject({
        uuid: z.uuid(),
        name: z.literal('org.devstate.nvme.alder'),
        version: z.literal('1.0'),
      }),
      negotiation: z.strictObject({
        taken: z.string(),
        reason: z.string(),
        losses: z.array(z.never()),
        features: z.array(z.string()),
        candidates: z.array(
          z.strictObject({
            name: z.string(),
            taken: z.boolean(),
            reason: z.string(),
            losses: z.array(z.string()),
          }),
        ),
      }),
      precopyBytes: count,
      stopBytes: count.positive(),
      dirtyPages: count,
      byMessage: z.boolean(),
    }),
  ),
  warnings: z.array(z.never()),
});

/** Migrates, and checks what the command says of it. */
async function migrate(t: Test, lab: MigrationLab, from: LabVm, to: LabVm): Promise<MigrateResult> {
  const { code, result, stderr } = await lab.migrate(from, to);
  t.equal(code, 0, 'devstate migrate', { stderr });
  t.same(Result.safeParse(result).error?.issues ?? [], [], 'its JSON is as documented');
  return result as MigrateResult;
}

/** A server is refused as long as another one has the image. */
async function refused(t: Test, lab: MigrationLab): Promise<void> {
  const paths = ['--socket', `${lab.directory}/x`, '--migration-socket', `${lab.directory}/y`];
  const third = new Devstate(['serve', 'nvme', ...paths, '--image', lab.image()]);
  t.equal(await third.exited, 1);
  t.match(third.stderr, /DEVSTATE_E_IMAGE_LOCKED/);
}

/** Samples who holds the image's lock until `done`. */
async function watchLock(lab: MigrationLab, done: Promise<unknown>): Promise<Set<string>> {
  const seen = new Set<string>();
  let ended = false;
  void done.then(() => {
    ended = true;
  });
  while (!ended) {
    seen.add((await lab.lockHolders()).join('+'));
    await new Promise((resolve) => setTimeout(resolve, SAMPLE_MS));
  }
  return seen;
}

const median = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1] ?? 0;

function reportDowntime(t: Test, results: readonly MigrateResult[]): void {
  const parts = Object.keys(Result.shape.downtime.shape) as (keyof MigrateResult['downtime'])[];
  const medians = parts.map(
    (part) => `${part} ${median(results.map(({ downtime }) => downtime[part])).toFixed(1)}`,
  );
  t.comment(`downtime, medians of ${results.length}: ${medians.join(', ')}`);
}

for (const { name, append, interrupts } of [
  { name: 'MSI-X', append: '', interrupts: /^irq .*PCI-MSI/ },
  { name: 'INTx', append: 'pci=nomsi', interrupts: /^irq .*IO-APIC/ },
]) {
  t.test(`four moves, there and back, with ${name}`, async (t) => {
    const lab = await MigrationLab.create(t, { append, cpus: 2 });
    if (lab === undefined) return;
    const servers = [await lab.serve('a'), await lab.serve('b', { incoming: true })] as const;
    let vm = await lab.startVm({ server: servers[0] });
    await vm.console.waitFor(interrupts);
    await lab.guestWrites(vm);
    await refused(t, lab);
    const results: MigrateResult[] = [];
    for (let move = 1; move <= 4; move++) {
      const [from, to] = move % 2 === 1 ? servers : ([servers[1], servers[0]] as const);
      t.same(await lab.lockHolders(), [from.name]);
      const next = await lab.startVm({ server: to, incoming: true });
      const moved = migrate(t, lab, vm, next);
      const holders = await watchLock(lab, moved);
      results.push(await moved);
      const [expected] = results.at(-1)?.expected?.devices ?? [];
      t.equal(expected?.copiedBy, 'mapped');
      t.ok((expected?.copyBytesPerSecond ?? 0) > 0, 'the rate of copying was measured');
      // In between no one holds it, for a moment that is not always seen.
      holders.delete('');
      t.same([...holders], [from.name, to.name]);
      await lab.guestWrites(next);
      t.same(lab.warnings(), [], 'no warning was logged');
      await vm.kill();
      vm = next;
    }
    await refused(t, lab);
    t.same(await lab.finishAndCheck(vm), []);
    reportDowntime(t, results);
  });
}

/** What a test puts on the disk where the guest's witness does not write. */
const CONTENT_OFFSET = 32 << 20;

async function putContent(lab: MigrationLab, length: number): Promise<Buffer> {
  const content = Buffer.alloc(length, 'memory that only the device has written\n');
  const image = await open(lab.image(), 'r+');
  await image.write(content, 0, length, CONTENT_OFFSET);
  await image.close();
  return content;
}

/** Has the guest read the disk into a buffer of its own; the checksum of what it has then. */
async function readDisk(vm: LabVm, length: number): Promise<string | undefined> {
  const from = vm.console.lines.length;
  vm.console.write(`readhash ${CONTENT_OFFSET} ${length}`);
  return (await vm.console.waitFor(/^hash (\w+)/, { from })).match[1];
}

/** A migration under way that has sent all of RAM once and does not switch over before it is released. */
async function holdInPrecopy(lab: MigrationLab, source: LabVm, destination: LabVm, args: string[]) {
  const set = (parameters: Record<string, number>) =>
    source.qmp.execute('migrate-set-parameters', { arguments: parameters });
  // QEMU switches over once it expects to do so within the bound; at this rate, with a restless guest, it never does.
  await set({ 'avail-switchover-bandwidth': 1 });
  const migration = lab.startMigrate(source, destination, ['--bandwidth', '48M', ...args]);
  await migration.reports(({ ramTransferred = 0 }) => ramTransferred > 0);
  while ((await queryMigration(source.qmp)).ram.passes < 2) {
    if (migration.process.hasEnded) throw new Error(`ended early: ${migration.process.stderr}`);
  }
  // A few pages a second: a pass takes so long that the guest has always written some meanwhile, on any machine.
  await set({ 'max-bandwidth': 64 << 10 });
  const release = () => set({ 'max-bandwidth': 0, 'avail-switchover-bandwidth': 0, 'downtime-limit': 300 });
  return { migration, release };
}

for (const byMessage of [false, true]) {
  const how = byMessage ? 'by messages, where it is much' : 'copied at the stop';
  t.test(`what a device reads into memory while RAM is copied arrives: ${how}`, async (t) => {
    const length = 8 << 20;
    const lab = await MigrationLab.create(t, { cpus: 2, restless: true });
    if (lab === undefined) return;
    const a = await lab.serve('a');
    const content = await putContent(lab, 2 * length);
    const source = await lab.startVm({ server: a });
    await lab.guestWrites(source);
    source.console.write(`prepare ${length}`);
    await source.console.waitFor(/^prepared/);
    const b = await lab.serve('b', { incoming: true });
    const destination = await lab.startVm({ server: b, incoming: true });

    // For so short a pause the pages of the first read are too many already; for so long a one none are, on any machine.
    const args = ['--downtime-ms', byMessage ? '10' : '20000'];
    const { migration, release } = await holdInPrecopy(lab, source, destination, args);
    const hash = (bytes: number) => crc32(content.subarray(0, bytes)).toString(16).padStart(8, '0');
    t.equal(await readDisk(source, length), hash(length));
    let last = length;
    if (byMessage) {
      // The log is looked at every few reports.
      const reports = migration.progress.length;
      await migration.reports(() => migration.progress.length >= reports + 10);
      last = 2 * length;
      t.equal(await readDisk(source, last), hash(last));
    }
    t.equal(migration.progress.at(-1)?.phase, 'precopy');
    await release();

    const { code, result, stderr } = await migration.finished;
    t.equal(code, 0, 'devstate migrate', { stderr });
    t.equal(result?.devices[0]?.byMessage, byMessage);
    const pages = result?.dirtyPages ?? 0;
    if (byMessage) t.ok(pages < last / 4096, `${pages} pages copied: not those of the second read`);
    else t.ok(pages >= last / 4096, `${pages} pages copied`);
    destination.console.write('recheck');
    const again = await destination.console.waitFor(/^rehash (\w+)/);
    t.equal(again.match[1], hash(last));
    t.same(await lab.finishAndCheck(destination), []);
  });
}

t.test('two disks, one of them behind a port', async (t) => {
  const lab = await MigrationLab.create(t, { disks: ['05.0', 'behind-port'] });
  if (lab === undefined) return;
  const serve = async (name: string, incoming: boolean): Promise<LabServer[]> => [
    await lab.serve(`${name}0`, { incoming, disk: 0 }),
    await lab.serve(`${name}1`, { incoming, disk: 1 }),
  ];
  const [a, b] = [await serve('a', false), await serve('b', true)];
  let vm = await lab.startVm({ servers: a });
  await lab.guestWrites(vm, { disk: 1 });
  for (const servers of [b, a]) {
    const next = await lab.startVm({ servers, incoming: true });
    const result = await migrate(t, lab, vm, next);
    t.same(
      result.devices.map(({ id }) => id),
      ['disk0', 'disk1'],
    );
    for (const disk of [0, 1]) {
      await lab.guestWrites(next, { disk });
      t.same(await lab.lockHolders(disk), [servers[disk]?.name]);
    }
    await vm.kill();
    vm = next;
  }
  t.same(await lab.finishAndCheck(vm), []);
});

t.test('a paused VM arrives paused; text output', async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const a = await lab.serve('a');
  const source = await lab.startVm({ server: a });
  await lab.guestWrites(source);
  await stopVm(source.qmp);
  const b = await lab.serve('b', { incoming: true });
  const destination = await lab.startVm({ server: b, incoming: true });
  const { code, stdout, stderr } = await lab.migrate(source, destination, ['-o', 'text']);
  t.equal(code, 0);
  t.match(stdout, /^Status: +completed, paused at the destination$/m);
  t.match(stdout, /^Downtime: +[\d.]+ m?s \(devstate [\d.]+ ms, QEMU [\d.]+ m?s\)$/m);
  t.match(stdout, /^Device disk0: +org\.devstate\.nvme\.alder 1\.0$/m);
  t.same(
    stdout.split('\n').filter((line) => line.length > 80),
    [],
  );
  t.equal(stderr, 'check\nprecopy\nswitchover\nland\ncommit\n');
  t.match(await queryRunState(destination.qmp), { status: 'paused', running: false });
  t.equal(destination.console.lines.length, 0);
  await resumeVm(destination.qmp);
  await lab.guestWrites(destination);
  t.same(await lab.finishAndCheck(destination), []);
});

t.test('RAM that cannot be mapped', async (t) => {
  const lab = await MigrationLab.create(t, { sharedMemory: false });
  if (lab === undefined) return;
  const a = await lab.serve('a');
  let vm = await lab.startVm({ server: a });
  await lab.guestWrites(vm);
  const b = await lab.serve('b', { incoming: true });
  for (const server of [b, a]) {
    const next = await lab.startVm({ server, incoming: true });
    const result = await migrate(t, lab, vm, next);
    t.equal(result.dirtyPages, 0, 'QEMU has written all of it itself');
    await lab.guestWrites(next);
    await vm.kill();
    vm = next;
  }
  t.same(await lab.finishAndCheck(vm), []);
});
