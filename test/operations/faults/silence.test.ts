// SPDX-License-Identifier: Apache-2.0
/** A source's QEMU that falls silent is waited for no longer than its limit, and is freed from what it is at. */
import t from 'tap';
import { withoutLeak } from '../../support/closes.js';
import { Bed } from './bed.js';
import { judge } from './sweep.js';

/** A command or line, how many of its name came before, and what comes of it. */
const ROWS: readonly (readonly [command: string, nth: number, error: RegExp | undefined])[] = [
  ['chardev-remove', 0, /^check: the migration did not complete within/],
  ['chardev-add', 1, /^check: cannot use QEMU's qtest server: no answer/],
  ['readl', 0, /^check: the migration did not complete within/],
  ['query-status', 2, /^switchover: .*did not complete within 600 s; the VM runs on at the source/],
  ['query-migrate', 3, undefined],
];

for (const [command, nth, error] of ROWS) {
  t.test(`${command}, ${nth}`, async (t) => {
    await withoutLeak(t, async () => {
      const bed = await Bed.make();
      bed.source.qemu.fault = (asked) => (asked.name === command && asked.nth === nth ? 'stuck' : undefined);
      await bed.migrate();
      if (error === undefined) t.same(bed.error, undefined);
      else t.match(bed.error?.message, error);
      t.same(await judge(bed), []);
      await bed.close();
    });
  });
}
