// SPDX-License-Identifier: Apache-2.0
/**
 * Phases *land* and *commit*: QEMU completes, the destination's devices become what the source's were, and the VM runs
 * there. Until it does, the source could go on.
 */

import type { MigrationProtocol } from '../../migration/index.js';
import { MigrationState } from '../../wire/index.js';
import { unlessAborted } from '../waiting.js';
import { start } from './destination-vm.js';
import { LOG_PAGE_SIZE } from './dirty-pages.js';
import { continueToWaiting, requireStopped, resetArrived, wasResetSince } from './guest.js';
import { clearNote } from './note.js';
import { runDestinations } from './p2p.js';
import { putBackAt } from './qemu-settings.js';
import { forEachDevice, type Run, runsAtSource, Stopwatch, timed, together } from './run.js';
import { replay } from './view.js';

/** How long the destination's QEMU may take to begin to run the VM, ms. */
const START_TIMEOUT_MS = 30_000;

/** Milliseconds. QEMU's own part and the load overlap, and so do pages and replay; `wallMs` is without QEMU's part. */
export interface LandTimes {
  readonly qemuMs: number;
  readonly loadMs: number;
  readonly pagesMs: number;
  readonly replayMs: number;
  readonly resumeMs: number;
  readonly wallMs: number;
  readonly pageBytes: number;
}

export async function land(run: Run): Promise<LandTimes> {
  run.phase = 'land';
  run.report({ phase: 'land' });
  const stopwatch = new Stopwatch();
  // The devices' state is all there and needs nothing of QEMU's. Their pages come after: QEMU's would overwrite them.
  const [qemuMs, loadMs] = await together([complete(run, new Stopwatch()), load(run, new Stopwatch())]);
  const [{ pagesMs, pageBytes }, replayMs] = await together([
    copyPages(run, new Stopwatch()),
    timed(replayAll(run, 'v2')),
    // While there is other work: once it runs the VM, nobody may be left to do it.
    putBackAt('destination', run.destination.qmp, run.settings).catch(warn(run)),
  ]);
  stopwatch.lap();
  run.signal.throwIfAborted();
  await together([runDestinations(run), requireStopped(run, run.signal)]);
  // A device of v1 becomes only now what was loaded, and would undo what was written to its registers before.
  await replayAll(run, 'v1');
  if (wasResetSince(run, run.stand)) await resetArrived(run.destination, run.signal);
  const resumeMs = stopwatch.lap();
  const wallMs = stopwatch.elapsed - qemuMs;
  return { qemuMs, loadMs, pagesMs, replayMs, resumeMs, wallMs, pageBytes };
}

/** QEMU sends what is left of RAM, and its own devices. */
async function complete(run: Run, stopwatch: Stopwatch): Promise<number> {
  const { source, destination, signal } = run;
  await continueToWaiting(run, signal);
  await together([
    destination.watch.waitFor('completed', { signal }),
    source.watch.waitFor('completed', { signal }),
  ]);
  return stopwatch.elapsed;
}

/** A destination checks what it was given and takes the image over, before any register of it is written. */
async function load(run: Run, stopwatch: Stopwatch): Promise<number> {
  await forEachDevice(run, ({ destination: to }) => unlessAborted(to.device.commitLoad(), run.signal));
  return stopwatch.elapsed;
}

async function copyPages(run: Run, stopwatch: Stopwatch): Promise<{ pagesMs: number; pageBytes: number }> {
  const copied = await forEachDevice(run, async ({ copier, dirty }) => {
    const copy = (): Promise<number> => copier.copy(dirty.ranges(LOG_PAGE_SIZE), run.signal);
    try {
      return await copy();
    } catch (error) {
      // QEMU maps the source's memory anew when somebody resets it.
      await requireStopped(run, run.signal);
      if (!wasResetSince(run, run.stand)) throw error;
      return copy();
    }
  });
  run.sourceSpent = true;
  return { pagesMs: stopwatch.elapsed, pageBytes: copied.reduce((sum, bytes) => sum + bytes, 0) };
}

/** For the destinations of one protocol. */
async function replayAll(run: Run, protocol: MigrationProtocol): Promise<void> {
  await forEachDevice(run, async (device) => {
    if (device.destination.device.protocol === protocol) await replay(run.destination, device, run.signal);
  });
}

/** Starts the VM at the destination, which ends the source's claim to it. */
export async function commit(run: Run): Promise<void> {
  run.signal.throwIfAborted();
  run.phase = 'commit';
  run.report({ phase: 'commit' });
  if (runsAtSource(run)) await startDestination(run);
  // The VM is there. What fails now is untidy and no reason to go back.
  await forEachDevice(run, async ({ source: from }) => {
    await from.device.setState(MigrationState.STOP);
    await from.device.stopLogging();
  }).catch(warn(run, 'the source was not tidied up: '));
  await putBackAt('source', run.source.qmp, run.settings).catch(warn(run));
  await forEachDevice(run, ({ source: from }) => clearNote(from.device)).catch(
    warn(run, 'the source was not tidied up: '),
  );
}

/** Keeps an error that is no reason to go back. */
function warn({ warnings }: Pick<Run, 'warnings'>, prefix = ''): (error: unknown) => void {
  return (error) => {
    warnings.push(`${prefix}${error instanceof Error ? error.message : error}`);
  };
}

/** Going back is possible as long as the VM has surely not run there: it may have written to its disks. */
async function startDestination(run: Run): Promise<void> {
  const { qmp, watch } = run.destination;
  const { outcome, error } = await start(qmp, () => watch.resumed !== undefined, START_TIMEOUT_MS);
  run.mayRunThere = outcome === 'unknown';
  if (outcome !== 'runs') throw error;
}
