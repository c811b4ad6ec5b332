// SPDX-License-Identifier: Apache-2.0
/** Phase *commit*: the VM runs at the destination. Until it does, the source could continue. */

import { MigrationState } from '../../wire/index.js';
import { forEachDevice, type Reach, warn } from '../phased.js';
import { start } from './destination-vm.js';
import { lookBack } from './look-back.js';
import { clearNote, noted, writeNote } from './note.js';
import { runsAtSource } from './parties.js';
import type { Revocable, State } from './phases.js';
import { putBackAt } from './qemu-settings.js';

/** How long the destination's QEMU may take to begin to run the VM, ms. */
const START_TIMEOUT_MS = 30_000;

/** Starts the VM at the destination, which ends the source's claim to it. */
export async function commit(landed: State<'landed'>, reach: Reach<Revocable>): Promise<State<'committed'>> {
  landed.signal.throwIfAborted();
  const committing = reach({ ...landed, tag: 'committing' });
  const { source, settings, report } = committing;
  report({ phase: 'commit' });
  const running = runsAtSource(committing);
  if (running) {
    await noteStart(committing);
    await startDestination(committing, reach);
  }
  // The VM is there. What fails now is untidy and no reason to go back.
  await lookBack(committing).catch(warn(committing, 'the source was not looked at: '));
  await forEachDevice(committing, async ({ source: from }) => {
    await from.device.setState(MigrationState.STOP);
    await from.device.stopLogging();
  }).catch(warn(committing, 'the source was not tidied up: '));
  await putBackAt('source', source.qmp, settings.current).catch(warn(committing));
  await forEachDevice(committing, ({ source: from }) => clearNote(from.device)).catch(
    warn(committing, 'the source was not tidied up: '),
  );
  return { ...committing, tag: 'committed', running };
}

/** Should this process be killed now, `recover` has to know. */
async function noteStart(committing: State<'committing'>): Promise<void> {
  const devices = committing.devices.map(({ id }) => id);
  const how = noted({ ...committing, settings: committing.settings.current });
  await forEachDevice(committing, ({ id, source, view }) =>
    writeNote(source.device, { id, devices, running: true, mayRunThere: true, ...how, view }),
  );
}

/** Going back is possible as long as the VM has surely not run there: it may have written to its disks. */
async function startDestination(committing: State<'committing'>, reach: Reach<Revocable>): Promise<void> {
  const { qmp, watch } = committing.destination;
  const { outcome, error } = await start(qmp, () => watch.resumed !== undefined, START_TIMEOUT_MS);
  if (outcome === 'unknown') reach({ ...committing, tag: 'in-doubt' });
  if (outcome !== 'runs') throw error;
}
