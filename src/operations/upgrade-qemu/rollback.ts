// SPDX-License-Identifier: Apache-2.0
/**
 * Back to the old QEMU: whatever went wrong, in whatever phase, its VM runs again, with its devices.
 *
 *     new QEMU ends → devices stop → the old connections have them again → devices run → COMMAND is put back → VM runs
 */

import type { PciView } from '../../qemu/index.js';
import { returnToFirst } from '../migrate/next-vmm.js';
import { runsAtSource } from '../migrate/parties.js';
import { isUndone, restoreSource, type SourceChanges, whatIsLeft } from '../migrate/rollback.js';
import { replayIfSilenced } from '../migrate/view.js';
import type { Rollback } from '../phased.js';
import { newProcess, phaseOf, type Revocable } from './phases.js';

/** How long the old QEMU may take to answer, ms. */
const ANSWER_MS = 30_000;

const lost = (problem: string): Rollback => ({ left: '', problems: [problem], remarks: [] });

/** Undoes a replacement that failed, from the state that it had reached. */
export async function rollback(state: Revocable): Promise<Rollback> {
  state.report({ phase: 'rollback' });
  switch (state.tag) {
    case 'checked':
    case 'awaiting':
    case 'launched':
      return goBack(state, { tag: 'none' });
    case 'configured':
    case 'connecting':
      return goBack(state, { tag: 'configured', settings: state.settings.current });
    case 'migrating':
    case 'at-switchover':
      return goBack(state, { tag: 'migrating', settings: state.settings.current });
    case 'stopping':
    case 'stopped':
    case 'landing':
      return goBack(state, stoppedIn(state));
    case 'executing':
      return lost(
        `QEMU was told to execute the new program, and it is unknown whether it has: devstate recover finishes the upgrade, or goes back; the VM's state is in ${state.scratch.state}`,
      );
    case 'executed':
      return gone(state, `; the VM's state waits for it in ${state.scratch.state}`);
    case 'arrived':
    case 'resetting':
    case 'landed':
    case 'committing':
      return state.way.mode === 'cpr-exec' ? gone(state) : goBack(state, stoppedIn(state));
    case 'in-doubt':
      return lost(
        'the new QEMU was asked to run the VM and may run it: make sure that it does not, both have the same memory',
      );
  }
}

/** With cpr-exec there is no old QEMU any more. */
function gone(state: Revocable, more = ''): Rollback {
  return lost(
    `QEMU has executed the new program, and what it was before is gone (${phaseOf(state)}). Does it run, devstate recover finishes the upgrade${more}`,
  );
}

function stoppedIn(state: Extract<Revocable, { silenced: Map<string, PciView> }>): SourceChanges {
  return { tag: 'stopped', settings: state.settings.current, silenced: state.silenced };
}

async function goBack(state: Revocable, changes: SourceChanges): Promise<Rollback> {
  const { source, devices } = state;
  const signal = AbortSignal.timeout(ANSWER_MS);
  try {
    // What the new one has is worth nothing only as long as there is an old one to go back to.
    await source.qmp.execute('query-yank', { outOfBand: true, signal });
  } catch (error) {
    return lost(`the old QEMU is lost, and the new one was left as it is: ${words(error)}`);
  }
  await newProcess(state)?.process.kill();
  const problems: string[] = [];
  for (const device of devices) {
    const again = async (): Promise<void> => {
      await returnToFirst(device.source.device);
      const view = changes.tag === 'stopped' ? changes.silenced.get(device.id) : undefined;
      // While it stands still: an interrupt that is due must find its eventfd.
      if (view !== undefined) await replayIfSilenced(source, { id: device.id, view }, signal);
    };
    await again().catch((error: unknown) => {
      problems.push(`device ${device.id} is not the old QEMU's again: ${words(error)}`);
    });
  }
  if (problems.length > 0) return { left: '', problems, remarks: [] };
  const resumable = runsAtSource(state) && source.guest.guest.ended === undefined;
  const restored = await restoreSource({
    ...source,
    devices,
    changes,
    resumable,
    isUndone: isUndone(source),
  });
  return { left: await whatIsLeft(source, 'in the old QEMU'), ...restored };
}

function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
