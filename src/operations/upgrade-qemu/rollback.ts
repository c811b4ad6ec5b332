// SPDX-License-Identifier: Apache-2.0
/**
 * Back to the old QEMU: whatever went wrong, in whatever phase, its VM runs again, with its devices.
 *
 *     new QEMU ends → devices stop → the old connections have them again → devices run → COMMAND is put back → VM runs
 */

import { returnToFirst } from '../migrate/next-vmm.js';
import { type Rollback, restoreSource, UNDONE, whatIsLeft } from '../migrate/rollback.js';
import { runsAtSource } from '../migrate/run.js';
import { replayIfSilenced } from '../migrate/view.js';
import type { UpgradeRun } from './run.js';

/** How long the old QEMU may take to answer, ms. */
const ANSWER_MS = 30_000;

export async function rollback(run: UpgradeRun): Promise<Rollback> {
  const { phase } = run;
  run.phase = 'rollback';
  run.report({ phase: 'rollback' });
  const lost = (problem: string): Rollback => ({ left: '', problems: [problem], remarks: [] });
  if (run.mayRunThere) {
    return lost(
      'the new QEMU was told to run the VM and nobody can tell whether it does: see to it that it does not, both have the same memory',
    );
  }
  if (run.executed) {
    return lost(
      `QEMU has executed the new program, and what it was before is gone (${phase}). Does it run, devstate recover finishes the upgrade`,
    );
  }
  const { qmp, qtest, guest, watch } = run.source;
  const signal = AbortSignal.timeout(ANSWER_MS);
  try {
    // What the new one has is worth nothing only as long as there is an old one to go back to.
    await qmp.execute('query-yank', { outOfBand: true, signal });
  } catch (error) {
    return lost(`the old QEMU is lost, and the new one was left as it is: ${words(error)}`);
  }
  await run.process?.kill();
  const problems: string[] = [];
  for (const device of run.devices) {
    const again = async (): Promise<void> => {
      await returnToFirst(device.source.device);
      // While it stands still: an interrupt that is due must find its eventfd.
      if (device.silenced && device.view !== undefined)
        await replayIfSilenced(run.source, { id: device.id, view: device.view }, signal);
    };
    await again().catch((error: unknown) => {
      problems.push(`device ${device.id} is not the old QEMU's again: ${words(error)}`);
    });
  }
  if (problems.length > 0) return { left: '', problems, remarks: [] };
  const devices = run.devices.map(({ id, source, view, silenced }) => ({
    id,
    source,
    view: silenced ? view : undefined,
  }));
  const { settings } = run;
  const resumable = runsAtSource(run) && guest.guest.ended === undefined;
  const cancel = run.started && !watch.history.some((status) => UNDONE.includes(status));
  const restored = await restoreSource({ qmp, qtest, devices, resumable, cancel, settings });
  return { left: await whatIsLeft(run.source, 'in the old QEMU'), ...restored };
}

function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
