// SPDX-License-Identifier: Apache-2.0
/**
 * QEMU is replaced by another QEMU under a guest that writes to its disk and checks it: by cpr-transfer, then by
 * cpr-exec. The device's server stays what it is, and no reset reaches the device.
 */

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { UpgradeQemuResult } from '../../src/operations/index.js';
import { queryRunState } from '../../src/qemu/index.js';
import { devstate } from './harness/devstate-process.js';
import { type LabServer, type LabVm, MigrationLab } from './harness/lab.js';
import { discardPlan, type QemuPlan, QemuProcess } from './harness/qemu-process.js';

t.setTimeout(900_000);

/** fds and guest-memory mappings of a server. */
function held({ process: { process } }: LabServer): { fds: number; maps: number } {
  const proc = `/proc/${process.pid}`;
  const maps = readFileSync(`${proc}/maps`, 'latin1').split('\n');
  return {
    fds: readdirSync(`${proc}/fd`).length,
    maps: maps.filter((line) => line.includes('memfd:')).length,
  };
}

function parts({ mode, downtime, totalMs }: UpgradeQemuResult): string {
  const ms = Object.entries(downtime).map(([name, value]) => `${name} ${value.toFixed(1)}`);
  return `${mode}: ${ms.join(', ')}; all of it ${totalMs.toFixed(0)} ms`;
}

t.test('QEMU 11 → QEMU 11 by cpr-transfer, then by cpr-exec, twice', async (t) => {
  const lab = await MigrationLab.create(t, { replaceable: true });
  if (lab === undefined) return;
  const server = await lab.serve('a', { args: ['--size', '16M'] });
  let vm = await lab.startVm({ server });
  await lab.guestWrites(vm);
  const before = held(server);
  let last: typeof before | undefined;
  for (const mode of ['cpr-transfer', 'cpr-exec', 'cpr-transfer', 'cpr-exec'] as const) {
    const old = vm;
    const { vm: after, result } = await lab.upgradeQemu(vm, mode);
    vm = after;
    t.comment(parts(result));
    t.match(result, { status: 'completed', mode, running: true, warnings: [] });
    t.match(
      result.devices,
      [{ id: 'disk0', resets: 0, absorbed: { resets: 1 } }],
      'no reset reached the device',
    );
    t.ok(result.downtime.totalMs < 5000);
    await lab.guestWrites(vm);
    const now = held(server);
    // An eventfd of a vector that the guest has tried and left is not given again.
    t.ok(
      now.fds <= before.fds && now.maps === before.maps,
      `the server holds no more: ${JSON.stringify(now)}`,
    );
    t.same(now, last ?? now, 'and always the same');
    last = now;
    if (mode === 'cpr-transfer') t.not(vm.process.pid, old.process.pid);
    else t.equal(vm.process.pid, old.process.pid);
  }
  t.notOk(server.process.hasEnded);
  t.same(await lab.finishAndCheck(vm), []);
});

t.test('two disks, one behind a port', async (t) => {
  const lab = await MigrationLab.create(t, { replaceable: true, disks: ['05.0', 'behind-port'] });
  if (lab === undefined) return;
  const servers = [
    await lab.serve('a', { args: ['--size', '16M'] }),
    await lab.serve('b', { args: ['--size', '16M', '--vendor', 'birch'], disk: 1 }),
  ];
  let vm = await lab.startVm({ servers });
  await lab.guestWrites(vm);
  await t.test('what does not belong together is not upgraded', (t) => refuseMixedUp(t, lab, vm));
  for (const mode of ['cpr-transfer', 'cpr-exec', 'cpr-transfer'] as const) {
    const { vm: after, result } = await lab.upgradeQemu(vm, mode);
    vm = after;
    t.comment(parts(result));
    t.match(result.devices, [
      { id: 'disk0', resets: 0, absorbed: { resets: 1 } },
      { id: 'disk1', resets: 0, absorbed: { resets: 1 } },
    ]);
    await lab.guestWrites(vm);
    await lab.guestWrites(vm, { disk: 1 });
  }
  t.same(await lab.finishAndCheck(vm), []);
});

async function refuseMixedUp(t: Test, lab: MigrationLab, vm: LabVm): Promise<void> {
  const refused = async (
    change: (args: readonly string[], plan: QemuPlan) => readonly string[],
    ...words: RegExp[]
  ): Promise<void> => {
    const { plan, args } = await lab.planUpgrade(vm, 'cpr-transfer');
    const { code, stderr } = await devstate(...change(args, plan));
    t.equal(code, 3, stderr);
    for (const word of words) t.match(stderr, word);
    await discardPlan(plan);
    t.match(await queryRunState(vm.qmp), { status: 'running' });
    await lab.guestWrites(vm);
    await lab.guestWrites(vm, { disk: 1 });
  };
  const exchanged = (texts: readonly string[], one: string, other: string): string[] =>
    texts.map((text) => text.replace(one, '\0').replace(other, one).replace('\0', other));
  const [first, second] = vm.servers;
  await refused(
    (args) => exchanged(args, first!.migrationSocket, second!.migrationSocket),
    /device disk0: the old QEMU .* arrived at .*a\.mig, named as the server of device disk1/,
  );
  await refused(
    (args) => exchanged(args, `"${first!.socket}"`, `"${second!.socket}"`),
    /device disk0: the new QEMU .* arrived at .*b\.mig, named as the server of device disk1.*in the old QEMU/,
    /device disk1: the new QEMU .* arrived at .*a\.mig, named as the server of device disk0/,
  );
  const other = await QemuProcess.start(lab.qemu);
  t.teardown(() => other.kill());
  await refused(
    (args, { directory }) => args.map((arg) => arg.replace(join(directory, 'qmp,'), `${other.qmpPath},`)),
    /the new QEMU is to be asked at .*, where another process listens already/,
  );
  t.match(await queryRunState(other.qmp), { status: 'running' });
}
