// SPDX-License-Identifier: Apache-2.0
/** A guest's disk goes from one vendor's device to another's and back, under load, in the format that both have. */
import t from 'tap';
import type { MigrateResult } from '../../src/operations/index.js';
import { Devstate } from './harness/devstate-process.js';
import { MigrationLab } from './harness/lab.js';

const STANDARD = 'org.devstate.nvme 1.0';

t.setTimeout(900_000);

for (const { name, append } of [
  { name: 'MSI-X', append: '' },
  { name: 'INTx', append: 'pci=nomsi' },
]) {
  t.test(`alder → birch → alder → birch, with ${name}`, async (t) => {
    const lab = await MigrationLab.create(t, { append, cpus: 2 });
    if (lab === undefined) return;
    let server = await lab.serve('alder0');
    let vm = await lab.startVm({ server });
    await lab.guestWrites(vm);
    for (const [move, vendor] of ['birch', 'alder', 'birch'].entries()) {
      const next = await lab.serve(`${vendor}${move + 1}`, { incoming: true, args: ['--vendor', vendor] });
      const destination = await lab.startVm({ server: next, incoming: true });
      const { code, result, stderr } = await lab.migrate(vm, destination);
      t.equal(code, 0, `to ${vendor}`, { stderr });
      t.match(result?.devices[0]?.negotiation, { taken: STANDARD, losses: [] });
      t.same(
        untaken(result),
        ['not taken', 'not taken', 'not taken'],
        'every other candidate has its reason',
      );
      await lab.guestWrites(destination);
      t.same(await lab.lockHolders(), [next.name]);
      await vm.kill();
      await server.process.end();
      [vm, server] = [destination, next];
    }
    t.same(await lab.finishAndCheck(vm), []);
  });
}

t.test('value by value to a vendor with the standard format only, and back', async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  let vm = await lab.startVm({ server: await lab.serve('a', { args: ['--format', 'values'] }) });
  await lab.guestWrites(vm);
  for (const args of [
    ['--vendor', 'birch', '--format', 'org.devstate.nvme@1'],
    ['--vendor', 'alder', '--format', 'values'],
  ]) {
    const next = await lab.serve(args.join('-').replace(/[^a-z]/g, ''), { incoming: true, args });
    const destination = await lab.startVm({ server: next, incoming: true });
    const { code, result, stderr } = await lab.migrate(vm, destination);
    t.equal(code, 0, args.join(' '), { stderr });
    t.equal(result?.devices[0]?.negotiation.taken, STANDARD);
    await lab.guestWrites(destination);
    await vm.kill();
    vm = destination;
  }
  t.same(await lab.finishAndCheck(vm), []);
});

t.test('own formats only: converted on the way, there and back', async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const only = (vendor: string): string[] => ['--vendor', vendor, '--format', `org.devstate.nvme.${vendor}`];
  let vm = await lab.startVm({ server: await lab.serve('a', { args: only('alder') }) });
  await lab.guestWrites(vm);
  for (const [vendor, taken] of [
    ['birch', 'org.devstate.nvme.alder 1.0 → org.devstate.nvme 1.0 → org.devstate.nvme.birch 1.0'],
    ['alder', 'org.devstate.nvme.birch 1.0 → org.devstate.nvme 1.0 → org.devstate.nvme.alder 1.0'],
  ] as const) {
    const next = await lab.serve(`to-${vendor}`, { incoming: true, args: only(vendor) });
    const destination = await lab.startVm({ server: next, incoming: true });
    const { code, result, stderr } = await lab.migrate(vm, destination);
    t.equal(code, 0, vendor, { stderr });
    t.equal(result?.devices[0]?.negotiation.taken, taken);
    await lab.guestWrites(destination);
    await vm.kill();
    vm = destination;
  }
  t.same(await lab.finishAndCheck(vm), []);
});

t.test('what differs is refused before anything moves, all of it at once', async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const a = await lab.serve('a');
  const source = await lab.startVm({ server: a });
  await lab.guestWrites(source);
  const different = ['--param', 'queues=2', '--param', 'mdts=5', '--param', 'serial=OTHER'];
  const b = await lab.serve('b', { incoming: true, args: ['--vendor', 'birch', ...different] });
  const destination = await lab.startVm({ server: b, incoming: true });
  const copied = { 'qom-type': 'memory-backend-memfd', id: 'copied', size: 1 << 20, share: false };
  await destination.qmp.execute('object-add', { arguments: copied });
  const check = new Devstate(['check', '--source', a.migrationSocket, '--dest', b.migrationSocket]);
  t.equal(await check.exited, 3);
  const { code, stderr } = await lab.migrate(source, destination);
  t.equal(code, 3, stderr);
  for (const said of [check.stdout.replace(/\s+/g, ' '), stderr]) {
    t.match(said, /parameter mdts is 7 at the source, 5 at the destination/);
    t.match(said, /parameter queues is 4 at the source, 2 at the destination/);
    t.match(said, /parameter serial is "DISK0" at the source, "OTHER" at the destination/);
    t.match(said, /start the destination with .*--param queues=4/);
  }
  t.match(stderr, /the destination QEMU has the memory copied with share=off/);
  t.notMatch(stderr, /precopy/);
  await lab.guestWrites(source);
  t.same(await lab.finishAndCheck(source), []);
});

/** The candidates that were not taken, each of which says why. */
function untaken(result: MigrateResult | undefined): string[] {
  const { candidates = [] } = result?.devices[0]?.negotiation ?? {};
  return candidates
    .filter(({ taken }) => !taken)
    .map(({ reason }) => (reason === '' ? 'without a reason' : 'not taken'));
}
