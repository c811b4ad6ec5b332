// SPDX-License-Identifier: Apache-2.0
/**
 * Phases *land* and *commit*: QEMU completes, the destination's devices become what the source's were, and the VM runs
 * there. Until it does, the source could go on.
 */

import { DevstateError } from '../../errors.js';
import {
  continueMigration,
  findPciDevice,
  queryRunState,
  replayPciView,
  resumeVm,
} from '../../qemu/index.js';
import { MigrationState } from '../../wire/index.js';
import { copyMemory } from './dirty-pages.js';
import { clearNote } from './note.js';
import { forEachDevice, type Run, type RunDevice, Stopwatch } from './run.js';

export interface LandTimes {
  readonly qemuMs: number;
  readonly loadMs: number;
  readonly pagesMs: number;
  readonly replayMs: number;
  readonly resumeMs: number;
  readonly pageBytes: number;
}

export async function land(run: Run): Promise<LandTimes> {
  const { source, destination, signal } = run;
  run.phase = 'land';
  run.report({ phase: 'land' });
  const stopwatch = new Stopwatch();
  await continueMigration(source.qmp, { signal });
  await Promise.all([
    destination.watch.waitFor('completed', { signal }),
    source.watch.waitFor('completed', { signal }),
  ]);
  const qemuMs = stopwatch.lap();
  // To STOP first: that is where the destination checks what it was given and takes the image over, before any
  // register of it is written.
  await forEachDevice(run, ({ destination: to }) => to.device.setState(MigrationState.STOP));
  const loadMs = stopwatch.lap();
  const copied = await forEachDevice(run, (device) =>
    copyMemory(device.source.device, device.destination.device, device.dirty),
  );
  const pagesMs = stopwatch.lap();
  await forEachDevice(run, (device) => replay(run, device));
  const replayMs = stopwatch.lap();
  signal.throwIfAborted();
  await forEachDevice(run, ({ destination: to }) => to.device.setState(MigrationState.RUNNING));
  return {
    qemuMs,
    loadMs,
    pagesMs,
    replayMs,
    resumeMs: stopwatch.lap(),
    pageBytes: copied.reduce((sum, bytes) => sum + bytes, 0),
  };
}

async function replay(run: Run, { id, view }: RunDevice): Promise<void> {
  if (view === undefined) throw new DevstateError('DEVSTATE_E_INTERNAL', `no PCI view of ${id} was captured`);
  const location = await findPciDevice(run.destination.qmp, id, { signal: run.signal });
  await replayPciView(run.destination.qtest, location, view);
}

/** Starts the VM at the destination, which ends the source's claim to it. */
export async function commit(run: Run): Promise<void> {
  run.signal.throwIfAborted();
  run.phase = 'commit';
  run.report({ phase: 'commit' });
  if (run.wasRunning) await startDestination(run);
  // The VM is there. What fails now is untidy and no reason to go back.
  await forEachDevice(run, async ({ source: from }) => {
    await from.device.setState(MigrationState.STOP);
    await from.device.stopLogging();
    await clearNote(from.device);
  }).catch((error: unknown) => {
    run.warnings.push(`the source was not tidied up: ${error instanceof Error ? error.message : error}`);
  });
}

async function startDestination(run: Run): Promise<void> {
  const { qmp } = run.destination;
  const resumed = qmp.waitForEvent('RESUME');
  try {
    await resumeVm(qmp);
  } catch (error) {
    // The answer may have been lost and not the command: only a VM that surely does not run there may run here.
    const state = await queryRunState(qmp).catch(() => undefined);
    if (state?.running !== true) throw error;
    return;
  }
  await resumed;
}
