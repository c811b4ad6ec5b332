// SPDX-License-Identifier: Apache-2.0
/**
 * A manager that is killed after any command of a migration, and `recover` after it: the VM runs at one end, and at the
 * source unless it has run at the destination.
 */
import t from 'tap';
import { recover } from '../../../src/operations/index.js';
import { withoutLeak } from '../../support/closes.js';
import { Bed, ID } from './bed.js';
import { commandsOf, type GoodRun, goodRun } from './sweep.js';

const options = { taps: true };

/** Kills the manager there, and recovers. @param lost the destination's host is lost too, just then */
async function killedAfter(command: GoodRun['asked'][number], lost: boolean): Promise<string[]> {
  const bed = await Bed.make(options);
  const { source, destination } = bed;
  try {
    let ran = false;
    bed[command.where].qemu.after = ({ index }) => {
      if (index !== command.index) return;
      bed.killManager();
      if (!lost) return;
      // A VM that ran there may have written to its disks.
      ran = destination.qemu.model.isRunning;
      destination.qemu.exit();
    };
    await bed.migrate();
    bed.admitManagers();
    const error = await recover({
      sourceQmp: source.qemu.path,
      destQmp: destination.qemu.path,
      devices: [{ id: ID, source: source.served.migrationPath }],
    }).then(
      () => undefined,
      (error: { code: string; message: string }) => error,
    );
    const wrong = [...bed.hosts.twice];
    ran ||= destination.qemu.model.isRunning;
    if (ran && error?.code !== 'DEVSTATE_E_INCOMPATIBLE')
      wrong.push(`it has run at the destination: ${error?.message ?? 'recovered'}`);
    if (ran && source.qemu.model.isRunning) wrong.push('it runs at the source');
    if (!ran && error !== undefined && !(lost && /may have run/.test(error.message)))
      wrong.push(error.message);
    if (error === undefined) {
      wrong.push(...(await bed.whyNotBack()));
      if (!destination.qemu.model.ended) wrong.push("the destination's QEMU is there still");
    }
    return wrong.map((what) => `${command.where} ${command.name} (${command.index}): ${what}`);
  } finally {
    await bed.close();
  }
}

for (const lost of [false, true]) {
  t.test(lost ? 'and the destination is lost' : 'and both QEMUs are there', async (t) => {
    await withoutLeak(t, async () => {
      const commands = commandsOf(await goodRun(options));
      t.ok(commands.length > 30, `${commands.length} runs`);
      const wrong: string[] = [];
      for (const command of commands) wrong.push(...(await killedAfter(command, lost)));
      t.same(wrong, []);
    });
  });
}
