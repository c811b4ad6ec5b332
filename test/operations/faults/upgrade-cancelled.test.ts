// SPDX-License-Identifier: Apache-2.0
/** An upgrade that is cancelled at any command of either QEMU: the VM runs in one of them, and it is said in which. */
import t from 'tap';
import { withoutLeak } from '../../support/closes.js';
import type { Asked } from '../../support/qemu-stand-in.js';
import { commandsOf } from './sweep.js';
import type { Mode, UpgradeBed } from './upgrade-bed.js';
import { goodUpgrade, upgradeWith } from './upgrade-sweep.js';

/** The phase from which on it is too late to cancel: the new QEMU is asked to run the VM, or the old program is gone. */
const TOO_LATE: Readonly<Record<Mode, readonly string[]>> = {
  'cpr-transfer': ['commit'],
  'cpr-exec': ['land', 'commit'],
};

for (const [mode, late] of Object.entries(TOO_LATE) as [Mode, readonly string[]][]) {
  t.test(`${mode}, at each command`, async (t) => {
    await withoutLeak(t, async () => {
      const commands = commandsOf(await goodUpgrade(mode));
      t.ok(commands.length > 20, `${commands.length} runs`);
      const wrong: string[] = [];
      for (const { where, name, index, phase } of commands) {
        const what = `${where} ${name} (${index})`;
        const prepare = (bed: UpgradeBed): void => {
          const cancel = (asked: Asked): void => {
            if (asked.index === index) bed.cancel.abort();
          };
          if (where === 'source') bed.old.before = cancel;
          else
            bed.onNew = (qemu) => {
              qemu.before = cancel;
            };
        };
        const wanted = late.includes(phase) ? undefined : 'DEVSTATE_E_CANCELLED';
        const found = await upgradeWith(mode, what, prepare, ({ error }) =>
          error?.code === wanted ? [] : [`the error is not ${wanted ?? 'none'}`],
        );
        wrong.push(...found);
      }
      t.same(wrong, []);
    });
  });
}
