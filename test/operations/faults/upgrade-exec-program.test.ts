// SPDX-License-Identifier: Apache-2.0
/** The program that QEMU is to execute by cpr-exec is not there, ends at once, or takes too long to come up. */
import t from 'tap';
import { recover } from '../../../src/operations/index.js';
import { withoutLeak } from '../../support/closes.js';
import { ID } from './bed.js';
import { UpgradeBed } from './upgrade-bed.js';
import { judgeUpgrade, upgradeWith } from './upgrade-sweep.js';

t.test('it is not there', async (t) => {
  await withoutLeak(t, async () => {
    const prepare = (bed: UpgradeBed): void => bed.hosts.programs.clear();
    const found = await upgradeWith('cpr-exec', 'no program', prepare, ({ error }) =>
      /^land: QEMU could not execute the new program: .*the VM runs on in the old QEMU/.test(
        error?.message ?? '',
      )
        ? []
        : ['the error does not say so'],
    );
    t.same(found, []);
  });
});

t.test('it ends at once', async (t) => {
  await withoutLeak(t, async () => {
    const prepare = (bed: UpgradeBed): void => {
      bed.startProgram = async () => bed.time.hurry();
    };
    const found = await upgradeWith('cpr-exec', 'it ends', prepare, ({ error }) =>
      error?.code === 'DEVSTATE_E_ROLLBACK' && /the new program cannot be asked/.test(error.message)
        ? []
        : ['the error does not say so'],
    );
    t.same(found, []);
  });
});

t.test('it comes up when it is not waited for any more', async (t) => {
  await withoutLeak(t, async () => {
    const bed = await UpgradeBed.make('cpr-exec');
    const start = bed.startProgram;
    let late: (() => Promise<void>) | undefined;
    bed.startProgram = async (command) => {
      late = () => start(command);
      bed.time.hurry();
    };
    await bed.upgrade();
    t.equal(bed.error?.code, 'DEVSTATE_E_ROLLBACK');
    t.same(await judgeUpgrade(bed), []);
    t.equal(bed.folders.length, 1, 'what it is to read is there');
    await late?.();
    t.equal(bed.failure, undefined, 'it has found the VM');
    await recover({ sourceQmp: bed.newPath, devices: [{ id: ID, source: bed.served.migrationPath }] });
    t.same(await bed.whyNotReplaced(), []);
    await bed.close();
  });
});
