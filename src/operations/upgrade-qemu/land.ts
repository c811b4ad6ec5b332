// SPDX-License-Identifier: Apache-2.0
/**
 * Phases *switchover*, *land* and *commit*: the VM stands; the devices are stopped and QEMU's view of them is captured;
 * QEMU's own state goes over; the new connections get the devices; the VM runs in the new QEMU.
 */

import { DevstateError } from '../../errors.js';
import { continueMigration, queryMigration } from '../../qemu/index.js';
import { quit, start } from '../migrate/destination-vm.js';
import {
  continueToWaiting,
  requireStanding,
  requireStopped,
  resetArrived,
  standOf,
  wasResetSince,
} from '../migrate/guest.js';
import { clearNote } from '../migrate/note.js';
import { pauseDevices, runDestinations } from '../migrate/p2p.js';
import { putBackAt } from '../migrate/qemu-settings.js';
import { forEachDevice, runsAtSource, Stopwatch, timed, together, type Vm } from '../migrate/run.js';
import { capture, locate, replay } from '../migrate/view.js';
import { delay } from '../waiting.js';
import { connectDestination } from './connect.js';
import { requireNewQemu } from './identity.js';
import { connectQemu, untilArrived } from './new-qemu.js';
import type { UpgradeRun } from './run.js';
import type { UpgradeQemuDowntime } from './types.js';

/** How long a new program may take to come up, ms; nothing can be undone by then, so cancelling does not help. */
const EXEC_TIMEOUT_MS = 60_000;
/** How long the new QEMU may take to begin to run the VM, ms. */
const START_TIMEOUT_MS = 30_000;
/** How long a process that was killed may take to end, ms. */
const ENDING_MS = 2000;
/** How long the old one may take to quit, ms. */
const QUIT_TIMEOUT_MS = 10_000;

export async function switchover(
  run: UpgradeRun,
): Promise<Pick<UpgradeQemuDowntime, 'quiesceMs' | 'captureMs'>> {
  run.phase = 'switchover';
  run.report({ phase: 'switchover' });
  run.signal.throwIfAborted();
  const stopwatch = new Stopwatch();
  const quiesce = async (): Promise<void> => {
    run.stand = standOf(run);
    const [, locations] = await together([pauseDevices(run), locate(run), run.source.guest.settled()]);
    quiesceMs = stopwatch.lap();
    await capture(run, locations);
    await requireStanding(run, run.signal);
    // Reset while it stood: its devices run again, and QEMU's view of them is another one.
    if (wasResetSince(run, run.stand)) await quiesce();
  };
  let quiesceMs = 0;
  await together([quiesce(), connectDestination(run)]);
  run.signal.throwIfAborted();
  return { quiesceMs, captureMs: stopwatch.lap() };
}

export async function land(
  run: UpgradeRun,
): Promise<Pick<UpgradeQemuDowntime, 'qemuMs' | 'promoteMs' | 'replayMs' | 'resumeMs'>> {
  run.phase = 'land';
  run.report({ phase: 'land' });
  const qemuMs = await timed(run.options.mode === 'cpr-exec' ? execute(run) : complete(run));
  // Not before: an old QEMU whose migration fails runs its VM again by itself, and must find its devices.
  const signal = signalOf(run);
  const destination = destinationOf(run);
  const stopwatch = new Stopwatch();
  // The old QEMU can have been reset since, and its devices with it: then the new one is too, before it runs.
  if (!run.executed) await requireStopped(run, signal);
  const wasReset = wasResetSince(run, run.stand);
  if (wasReset) await pauseDevices(run);
  await forEachDevice(run, ({ source: { device } }) => device.setNextVmm({ action: 'promote' }));
  const promoteMs = stopwatch.lap();
  await together([
    forEachDevice(run, (device) => replay(destination, device, signal)),
    putBackAt('destination', destination.qmp, run.settings).catch((error: unknown) => {
      run.warnings.push(error instanceof Error ? error.message : String(error));
    }),
  ]);
  const replayMs = stopwatch.lap();
  signal.throwIfAborted();
  await runDestinations({ devices: run.devices, signal });
  if (wasReset) await resetArrived(destination, signal);
  return { qemuMs, promoteMs, replayMs, resumeMs: stopwatch.lap() };
}

/** QEMU sends its own devices; RAM stays where it is. */
async function complete(run: UpgradeRun): Promise<void> {
  const { source, signal } = run;
  const destination = destinationOf(run);
  await continueToWaiting({ source, destination }, signal);
  await together([
    destination.watch.waitFor('completed', { signal }),
    source.watch.waitFor('completed', { signal }),
  ]);
}

/** The old program writes its state to a file and becomes the new one, which reads it. */
async function execute(run: UpgradeRun): Promise<void> {
  const { source, qmpPath } = run;
  const signal = AbortSignal.timeout(EXEC_TIMEOUT_MS);
  const gone = source.qmp
    .waitForEvent(() => false, { signal })
    .then(
      () => false,
      () => false,
    );
  // A program that cannot be executed: QEMU had completed, says that it failed, and goes on.
  const failed = source.watch.waitForAny(['failed'], { signal }).then(
    () => true,
    () => false,
  );
  await continueMigration(source.qmp, { signal: run.signal });
  if (await Promise.race([gone, failed])) {
    const { error } = await queryMigration(source.qmp, { signal });
    const message = `QEMU could not execute the new program: ${error ?? 'its output says why'}`;
    throw new DevstateError('DEVSTATE_E_QEMU_MIGRATION', message);
  }
  run.executed = true;
  run.destination = await connectQemu(qmpPath, undefined, signal);
  await untilArrived(run.destination, signal);
  await requireNewQemu(run, run.destination, signal);
}

export function destinationOf({ destination }: UpgradeRun): Vm {
  if (destination === undefined)
    throw new DevstateError('DEVSTATE_E_INTERNAL', 'the new QEMU was not connected to');
  return destination;
}

/** Once the old program is gone there is only the way forward. */
function signalOf({ executed, signal }: UpgradeRun): AbortSignal {
  return executed ? AbortSignal.timeout(EXEC_TIMEOUT_MS) : signal;
}

/** Runs the VM in the new QEMU, which ends the old one's claim to it. */
export async function commit(run: UpgradeRun): Promise<void> {
  signalOf(run).throwIfAborted();
  run.phase = 'commit';
  run.report({ phase: 'commit' });
  if (runsAtSource(run)) await startVm(run);
  // The VM is there. What fails now is untidy and no reason to go back.
  const tidy = async (): Promise<void> => {
    if (!run.executed) await quit(run.source.qmp, QUIT_TIMEOUT_MS);
    await forEachDevice(run, async ({ source: { device } }) => {
      await device.setNextVmm({ action: 'commit' });
      await clearNote(device);
    });
  };
  await tidy().catch((error: unknown) => {
    run.warnings.push(`the old QEMU was not tidied up: ${error instanceof Error ? error.message : error}`);
  });
}

/** Going back is possible as long as the VM has surely not run there: both have the same RAM. */
async function startVm(run: UpgradeRun): Promise<void> {
  const { qmp, watch } = destinationOf(run);
  const { outcome, error } = await start(qmp, () => watch.resumed !== undefined, START_TIMEOUT_MS);
  // One that is just ending may take a connection still, and drop it; one that has ended runs nothing.
  if (outcome === 'unknown') await Promise.race([run.process?.exited ?? delay(0), delay(ENDING_MS)]);
  run.mayRunThere = outcome === 'unknown' && run.process?.ended === undefined;
  if (outcome !== 'runs') throw error;
}
