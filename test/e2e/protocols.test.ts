// SPDX-License-Identifier: Apache-2.0
/** A guest's disk goes from a server of one migration protocol to one of the other and back, under load. */
import t from 'tap';
import { Devstate } from './harness/devstate-process.js';
import { MigrationLab } from './harness/lab.js';

t.setTimeout(900_000);

const V1 = ['--migration', 'v1'];
const MAPPED = [...V1, '--migration-mapped'];

for (const { name, append } of [
  { name: 'MSI-X', append: '' },
  { name: 'INTx', append: 'pci=nomsi' },
]) {
  t.test(`v2 → v1 → v1 mapped → v2, with ${name}`, async (t) => {
    const lab = await MigrationLab.create(t, { append, cpus: 2 });
    if (lab === undefined) return;
    let server = await lab.serve('v2');
    let vm = await lab.startVm({ server });
    await lab.guestWrites(vm);
    for (const [to, args] of [
      ['v1', V1],
      ['v1-mapped', MAPPED],
      ['v2-again', []],
    ] as const) {
      const next = await lab.serve(to, { incoming: true, args });
      const check = new Devstate([
        'check',
        '--source',
        server.migrationSocket,
        '--dest',
        next.migrationSocket,
      ]);
      t.equal(await check.exited, 0);
      const said = check.stdout.replace(/\s+/g, ' ');
      t.equal(/the destination \S+ has no P2P state/.test(said), to !== 'v2-again', said);
      const destination = await lab.startVm({ server: next, incoming: true });
      const { code, result, stderr } = await lab.migrate(vm, destination);
      t.equal(code, 0, `to ${to}`, { stderr });
      t.equal(result?.status, 'completed');
      await lab.guestWrites(destination);
      t.same(await lab.lockHolders(), [next.name]);
      await vm.kill();
      await server.process.end();
      [vm, server] = [destination, next];
    }
    t.same(await lab.finishAndCheck(vm), []);
  });
}

t.test('two disks, one of each protocol, change places', async (t) => {
  const lab = await MigrationLab.create(t, { disks: ['05.0', '06.0'] });
  if (lab === undefined) return;
  const serve = (name: string, first: readonly string[], second: readonly string[], incoming: boolean) =>
    Promise.all([
      lab.serve(`${name}0`, { incoming, args: first, disk: 0 }),
      lab.serve(`${name}1`, { incoming, args: second, disk: 1 }),
    ]);
  const source = await lab.startVm({ servers: await serve('a', V1, [], false) });
  await lab.guestWrites(source);
  const destination = await lab.startVm({ servers: await serve('b', [], V1, true), incoming: true });
  const { code, result, stderr } = await lab.migrate(source, destination);
  t.equal(code, 0, 'devstate migrate', { stderr });
  t.match(result?.warnings, [/^device disk0 has no P2P state/]);
  t.equal(result?.warnings.length, 1, 'the one of v2 has');
  await lab.guestWrites(destination);
  t.same(await lab.finishAndCheck(destination), []);
});
