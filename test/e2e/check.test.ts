// SPDX-License-Identifier: Apache-2.0
/** `devstate check` beside a guest that has its disk read all the time: what it foretells, and that it leaves no trace. */
import t from 'tap';
import { Client, MigrationClient } from '../../src/client/index.js';
import type { CheckDevicesResult, ExpectedPause } from '../../src/operations/index.js';
import { queryRunState } from '../../src/qemu/index.js';
import { Errno, MigrationState } from '../../src/wire/index.js';
import { untilKilled } from '../fault/dying-manager.js';
import { outcome, until } from '../support/served.js';
import { devstate } from './harness/devstate-process.js';
import { type LabServer, MigrationLab } from './harness/lab.js';
import { settingsOf, withQtest } from './harness/qemu-settings.js';

t.setTimeout(900_000);

/** What the guest reads at a time, past its cache: its device writes that much over and over. */
const READ = 2 ** 17;
/** What two measurements may differ by: of the same memory, by the same code, on a machine that has more to do. */
const FACTOR = 10;

async function askServer<T>({ migrationSocket }: LabServer, work: (device: MigrationClient) => Promise<T>) {
  const device = new MigrationClient(await Client.connect(migrationSocket));
  try {
    return await work(device);
  } finally {
    device.close();
  }
}

/** EBUSY while somebody has the server's log, EINVAL when it is off: a report is refused either way. */
const logOf = (server: LabServer): Promise<number | string> =>
  askServer(server, (device) => outcome(device.reportLogging({ iova: 0, length: 4096, pageSize: 4096 })));

function near(one: number, other: number): boolean {
  return one > 0 && other > 0 && one / other < FACTOR && other / one < FACTOR;
}

t.test('what is expected before a migration, and what the migration then expects', async (t) => {
  const beside = `while :; do dd if=/dev/nvme0n1 of=/dev/null bs=${READ} iflag=direct 2>&-; done`;
  const lab = await MigrationLab.create(t, { beside });
  if (lab === undefined) return;
  const a = await lab.serve('a', { args: ['--size', '64M'] });
  const source = await lab.startVm({ server: a });
  await lab.guestWrites(source);
  const b = await lab.serve('b', { incoming: true });
  const destination = await lab.startVm({ server: b, incoming: true });

  const sockets = ['--source', a.migrationSocket, '--dest', b.migrationSocket];
  const qemus = ['--source-qmp', source.qmpPath, '--dest-qmp', destination.qmpPath, '--device', 'disk0'];
  const checked = async (args: readonly string[]): Promise<ExpectedPause | undefined> => {
    const { code, stdout, stderr } = await devstate('check', ...sockets, ...args, '-o', 'json');
    t.equal(code, 0, 'devstate check', { stderr });
    const { expected, notExpected } = JSON.parse(stdout) as CheckDevicesResult;
    t.equal(notExpected, null);
    return expected ?? undefined;
  };
  const requireUntouched = async (): Promise<void> => {
    t.equal(await logOf(a), Errno.EINVAL, 'the server logs nothing');
    for (const server of [a, b])
      t.equal(await askServer(server, (device) => device.state()), MigrationState.RUNNING);
    t.equal((await queryRunState(source.qmp)).status, 'running');
    t.equal((await queryRunState(destination.qmp)).status, 'inmigrate');
    await lab.guestWrites(source);
  };

  const before = [await settingsOf(source.qmp), await settingsOf(destination.qmp)];
  await checked([]);
  const after = [await settingsOf(source.qmp), await settingsOf(destination.qmp)];
  t.strictSame(after, before, 'neither QEMU has noticed');
  await requireUntouched();

  await untilKilled({
    operation: 'checkDevices',
    options: { source: a.migrationSocket, dest: b.migrationSocket },
  });
  await until(async () => (await logOf(a)) !== Errno.EBUSY);
  await requireUntouched();

  const foretold = await checked(qemus);
  const proven = [await settingsOf(source.qmp), await settingsOf(destination.qmp)];
  t.strictSame(proven, before.map(withQtest), 'but for qtest, as for every proof');
  await requireUntouched();

  // Slow enough for more than one look at what the device writes.
  const { code, result, stderr } = await lab.migrate(source, destination, ['--bandwidth', '32M']);
  t.equal(code, 0, 'devstate migrate', { stderr });
  const expected = result?.expected;
  const [one, other] = [foretold?.devices[0], expected?.devices[0]];
  if (one === undefined || other === undefined) return t.fail('nothing was expected', { foretold, expected });
  t.match(one, { id: 'disk0', copiedBy: 'mapped' });
  // Both are measured, over a millisecond each: on a machine that is busy one may be a small part of the other.
  for (const { copyBytesPerSecond: rate } of [one, other])
    t.ok(rate > 2 ** 20 && rate < 2 ** 40, 'the rate of copying', { one, other });
  t.ok(near(one.pageBytes, other.pageBytes) && one.pageBytes >= READ, 'the pages', { one, other });
  t.ok(near(foretold?.totalMs ?? 0, expected?.totalMs ?? 0), 'the pause', { foretold, expected });
  t.comment(JSON.stringify({ foretold, expected, downtime: result?.downtime.totalMs }));
  t.same(await lab.finishAndCheck(destination), []);
});
