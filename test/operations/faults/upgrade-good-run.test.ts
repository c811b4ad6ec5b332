// SPDX-License-Identifier: Apache-2.0
/** An upgrade of QEMU that goes well, between stand-ins: what is asked of whom, and what it leaves. */
import { join } from 'node:path';
import t from 'tap';
import { withoutLeak } from '../../support/closes.js';
import type { QemuStandIn } from '../../support/qemu-stand-in.js';
import { until } from '../../support/served.js';
import { UpgradeBed } from './upgrade-bed.js';

/** What changes something, in its order. */
const OLD = [
  ...['getfd', 'chardev-add', 'object-add'],
  ...['migrate-set-capabilities', 'migrate-set-parameters', 'migrate', 'migrate-continue', 'quit'],
];
const NEW = [
  ...['getfd', 'chardev-add', 'object-add', 'migrate-set-capabilities', 'stop'],
  ...['migrate-set-capabilities', 'cont'],
];

t.test('by cpr-transfer', async (t) => {
  await withoutLeak(t, async () => {
    const bed = await UpgradeBed.make('cpr-transfer');
    const { old, newQemu } = bed;
    await bed.upgrade();
    t.same(bed.error, undefined);
    t.match(bed.outcome, { status: 'completed', mode: 'cpr-transfer', running: true, warnings: [] });
    t.match(bed.outcome?.devices, [{ id: 'disk0', resets: 0, absorbed: { resets: 1 } }]);
    t.same(await bed.whyNotReplaced(), []);
    t.same(bed.hosts.twice, []);
    await until(() => bed.clients === 0);
    t.same(bed.folders, []);
    t.ok(old.model.ended, 'the old QEMU has ended');
    t.same(bed.phases, ['check', 'start', 'connect', 'switchover', 'land', 'commit']);
    const [folder = ''] = newQemu.values('-incoming').map((one) => JSON.parse(one).addr.path.slice(0, -5));
    t.same(newQemu.args?.slice(-5), [
      '-S',
      ...['main', 'cpr'].flatMap((type) => {
        const addr = { transport: 'socket', type: 'unix', path: join(folder, type) };
        return ['-incoming', JSON.stringify({ 'channel-type': type, addr })];
      }),
    ]);
    for (const [who, qemu, steps] of [
      ['old', old, OLD],
      ['new', newQemu.qemu, NEW],
    ] as const) {
      t.same(qemu?.model.unknown, []);
      const asked = qemu?.asked.filter(({ by }) => by === 'qmp').map(({ name }) => name);
      t.same(
        asked?.filter((name) => !/^(query-|qom-|qmp_)/.test(name)),
        steps,
        who,
      );
    }
    await bed.close();
  });
});

/** By cpr-exec: the first program, and the one that takes its place. */
const FIRST = OLD.slice(0, -1);
const SECOND = ['getfd', 'chardev-add', 'object-add', 'cont'];

const stepsOf = (qemu: QemuStandIn | undefined): string[] | undefined =>
  qemu?.asked
    .filter(({ by, name }) => by === 'qmp' && !/^(query-|qom-|qmp_)/.test(name))
    .map(({ name }) => name);

t.test('by cpr-exec', async (t) => {
  await withoutLeak(t, async () => {
    const bed = await UpgradeBed.make('cpr-exec');
    const { old } = bed;
    await bed.upgrade();
    t.same(bed.error, undefined);
    t.match(bed.outcome, { status: 'completed', mode: 'cpr-exec', running: true, warnings: [] });
    t.equal(bed.outcome?.pid, undefined);
    t.match(bed.outcome?.devices, [{ id: 'disk0', resets: 0, absorbed: { resets: 1 } }]);
    t.same(await bed.whyNotReplaced(), []);
    t.same(bed.hosts.twice, []);
    await until(() => bed.clients === 0);
    t.same(bed.folders, []);
    t.ok(old.hasExecuted);
    t.same(bed.phases, ['check', 'start', 'connect', 'switchover', 'land', 'commit']);
    t.same([old.model.unknown, bed.next?.model.unknown], [[], []]);
    t.same([stepsOf(old), stepsOf(bed.next)], [FIRST, SECOND]);
    await bed.close();
  });
});
