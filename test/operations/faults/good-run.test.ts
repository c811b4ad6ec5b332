// SPDX-License-Identifier: Apache-2.0
/** A migration that goes well, between stand-ins for QEMU: what is asked of whom, in which order, and what it leaves. */
import t from 'tap';
import { withoutLeak } from '../../support/closes.js';
import { until } from '../../support/served.js';
import { Bed } from './bed.js';

/** What changes something, in its order. */
const STEPS = {
  source: [
    ...['chardev-add', 'chardev-remove', 'getfd', 'chardev-add', 'object-add'],
    ...['migrate-set-capabilities', 'migrate-set-parameters', 'migrate', 'migrate-continue'],
    ...['migrate-set-capabilities', 'migrate-set-parameters'],
  ],
  destination: [
    ...['getfd', 'chardev-add', 'object-add', 'stop', 'migrate-set-capabilities', 'migrate-incoming', 'stop'],
    ...['migrate-set-capabilities', 'cont'],
  ],
};

/** What one side does waits for what the other side has done. */
const MILESTONES = [
  'destination stop',
  'destination migrate-incoming',
  'source migrate',
  'source migrate-continue',
  'destination cont',
];

for (const configWay of ['ecam', 'ports'] as const) {
  t.test(`a migration that goes well, by ${configWay}`, async (t) => {
    await withoutLeak(t, async () => {
      const bed = await Bed.make({ configWay });
      await bed.migrate();
      t.same(bed.error, undefined);
      t.same(await bed.whyNotMoved(), []);
      t.same(bed.hosts.twice, []);
      await until(() => bed.clients === 0);
      t.equal(bed.source.qemu.model.status, 'postmigrate');
      t.equal(await bed.stateAt('source'), 'STOP', 'the source is released');
      t.same(
        bed.order.filter((step) => MILESTONES.includes(step)),
        MILESTONES,
      );
      t.same(bed.phases, ['check', 'precopy', 'switchover', 'land', 'commit']);
      for (const where of ['source', 'destination'] as const) {
        t.same(bed[where].qemu.model.unknown, []);
        const asked = bed[where].qemu.asked.filter(({ by }) => by === 'qmp').map(({ name }) => name);
        const steps = asked.filter((name) => !/^(query-|qom-|qmp_)/.test(name));
        t.same(steps, STEPS[where], where);
      }
      await bed.close();
    });
  });
}
