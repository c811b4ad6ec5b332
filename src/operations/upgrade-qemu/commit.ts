// SPDX-License-Identifier: Apache-2.0
/** Phase *commit*: the VM runs in the new QEMU, which ends the old one's claim to it. */

import { quit, start } from '../migrate/destination-vm.js';
import { clearNote } from '../migrate/note.js';
import { runsAtSource } from '../migrate/parties.js';
import { forEachDevice, type Reach, warn } from '../phased.js';
import { delay } from '../waiting.js';
import { newProcess, type Revocable, type State } from './phases.js';

/** How long the new QEMU may take to begin to run the VM, ms. */
const START_TIMEOUT_MS = 30_000;
/** How long a process that was killed may take to end, ms. */
const ENDING_MS = 2000;
/** How long the old one may take to quit, ms. */
const QUIT_TIMEOUT_MS = 10_000;

export async function commit(landed: State<'landed'>, reach: Reach<Revocable>): Promise<State<'committed'>> {
  const isExec = landed.way.mode === 'cpr-exec';
  // Once the old program is gone there is only the way forward.
  if (!isExec) landed.signal.throwIfAborted();
  const committing = reach({ ...landed, tag: 'committing' });
  committing.report({ phase: 'commit' });
  const running = runsAtSource(committing);
  if (running) await startVm(committing, reach);
  // The VM is there. What fails now is untidy and no reason to go back.
  const tidy = async (): Promise<void> => {
    if (!isExec) await quit(committing.source.qmp, QUIT_TIMEOUT_MS);
    await forEachDevice(committing, async ({ source: { device } }) => {
      await device.setNextVmm({ action: 'commit' });
      await clearNote(device);
    });
  };
  await tidy().catch(warn(committing, 'the old QEMU was not tidied up: '));
  return { ...committing, tag: 'committed', running };
}

/** Going back is possible as long as the VM has surely not run there: both have the same RAM. */
async function startVm(committing: State<'committing'>, reach: Reach<Revocable>): Promise<void> {
  const { qmp, watch } = committing.destination;
  const { outcome, error } = await start(qmp, () => watch.resumed !== undefined, START_TIMEOUT_MS);
  if (outcome === 'unknown') {
    const process = newProcess(committing)?.process;
    // One that is just ending may take a connection still, and drop it; one that has ended runs nothing.
    await Promise.race([process?.exited ?? delay(0), delay(ENDING_MS)]);
    if (process?.ended === undefined) reach({ ...committing, tag: 'in-doubt' });
  }
  if (outcome !== 'runs') throw error;
}
