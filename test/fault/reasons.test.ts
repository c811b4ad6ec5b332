// SPDX-License-Identifier: Apache-2.0
/**
 * A migration fails where one end knows why and the other does not: the message has the reason, and which end it is of.
 * One source goes through all of it, and writes on.
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { devstate } from '../e2e/harness/devstate-process.js';
import { type LabVm, MigrationLab } from '../e2e/harness/lab.js';
import { discardPlan } from '../e2e/harness/qemu-process.js';
import type { RunningMigration } from '../e2e/harness/running-migration.js';

t.setTimeout(900_000);

/** A way in which the destination is not what the source needs. */
interface Difference {
  readonly name: string;
  /** QEMU's stderr goes to a file, as with most managers of VMs. */
  readonly logged?: boolean;
  readonly memoryMiB?: number;
  readonly disks?: readonly string[];
  /** More of the destination QEMU's arguments. */
  readonly extra?: readonly string[];
  /** More of `devstate migrate`'s arguments. */
  readonly args?: readonly string[];
  readonly happens?: (scene: { migration: RunningMigration; destination: LabVm }) => Promise<void>;
  readonly says: RegExp;
  /** It is refused before anything changes. */
  readonly refused?: true;
}

/** What the source's machine has beyond its disk: a device with memory of its own, and one without. */
const NETWORK = ['-device', 'e1000,addr=07.0'];
const WATCHDOG = ['-device', 'i6300esb,addr=08.0'];

const DIFFERENCES: readonly Difference[] = [
  {
    name: 'a device is missing',
    extra: WATCHDOG,
    says: /at the destination: Unknown ramblock "0000:00:07\.0\/e1000\.rom", which the source has/,
  },
  {
    name: 'a device is missing, and QEMU says it to a file',
    logged: true,
    extra: WATCHDOG,
    says: /at the destination: Unknown ramblock "0000:00:07\.0\/e1000\.rom", cannot accept migration/,
  },
  {
    name: 'a device without memory is missing',
    extra: NETWORK,
    says: /at the destination: .*[Uu]nknown .*section.*08\.0\/i6300esb/,
  },
  {
    name: 'another size of RAM',
    memoryMiB: 64,
    extra: [...NETWORK, ...WATCHDOG],
    says: /at the destination: Size mismatch of ramblock "mem": 67108864 bytes, at the source 134217728/,
  },
  {
    name: 'another machine type',
    extra: [...NETWORK, ...WATCHDOG, '-M', 'pc'],
    says: /at the destination: .*[Mm]achine type received is 'pc-q35/,
  },
  {
    name: 'a CPU with less features',
    extra: [...NETWORK, ...WATCHDOG, '-cpu', 'qemu32'],
    says: /qemu64-x86_64-cpu and the destination QEMU qemu32-.* lacks features that the guest may use/,
    refused: true,
  },
  {
    name: 'the disk at another address',
    extra: [...NETWORK, ...WATCHDOG],
    disks: ['06.0'],
    says: /device disk0 is at the PCI address 05\.0 at the source and 06\.0 at the destination/,
    refused: true,
  },
  {
    name: 'it cannot listen',
    extra: [...NETWORK, ...WATCHDOG],
    args: ['--uri', 'unix:/no/such/directory/ram'],
    says: /destination QEMU cannot listen at --uri .*there is no folder \/no\/such\/directory/,
    refused: true,
  },
  {
    name: 'its QEMU is killed',
    extra: [...NETWORK, ...WATCHDOG],
    args: ['--bandwidth', '64K'],
    happens: async ({ migration, destination }) => {
      await migration.reports(({ phase }) => phase === 'precopy');
      await destination.kill();
    },
    says: /destination: its QEMU has ended/,
  },
];

t.test('why a migration failed', async (t) => {
  const lab = await MigrationLab.create(t);
  if (lab === undefined) return;
  const a = await lab.serve('a', { args: ['--size', '16M'] });
  const source = await lab.startVm({ server: a, extra: [...NETWORK, ...WATCHDOG] });
  await lab.guestWrites(source);
  for (const [index, { name, args, happens, says, logged, refused, ...machine }] of DIFFERENCES.entries()) {
    await t.test(name, async (t) => {
      const server = await lab.serve(`b${index}`, { incoming: true });
      const log = logged === true ? { log: join(lab.directory, `b${index}.log`) } : {};
      const destination = await lab.startVm({ server, incoming: true, ...machine, ...log });
      const migration = lab.startMigrate(source, destination, args);
      await happens?.({ migration, destination });
      const { code, stderr } = await migration.finished;
      t.equal(code, refused ? 3 : 1, 'exit code');
      t.match(stderr, says);
      t.notMatch(stderr, /Sibling indicated/, 'what says nothing is left out');
      t.match(stderr, refused ? /was refused before it began/ : /runs on at the source/);
      await lab.guestWrites(source);
      await destination.kill();
      await server.process.end('SIGTERM');
    });
  }
});

t.test('a new QEMU that does not take the VM', async (t) => {
  const lab = await MigrationLab.create(t, { replaceable: true });
  if (lab === undefined) return;
  const server = await lab.serve('a', { args: ['--size', '16M'] });
  const vm = await lab.startVm({ server, extra: NETWORK });
  await lab.guestWrites(vm);
  // Somebody else's words are in the log already.
  await writeFile(join(lab.directory, 'qemus.log'), 'qemu-system-x86_64: of another one\n');
  const { plan, args } = await lab.planUpgrade(vm, 'cpr-transfer');
  const { code, stderr } = await devstate(...args);
  await discardPlan(plan);
  t.equal(code, 1);
  t.match(stderr, /the new QEMU ended with exit code 1: .*e1000.*07\.0|07\.0.*e1000/);
  t.notMatch(stderr, /of another one/);
  await lab.guestWrites(vm);
});
