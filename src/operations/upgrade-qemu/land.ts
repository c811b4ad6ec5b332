// SPDX-License-Identifier: Apache-2.0
/** Phase *land*: QEMU's own state goes over; the new connections get the devices. */

import { DevstateError } from '../../errors.js';
import { continueMigration, QmpCommandError, queryMigration } from '../../qemu/index.js';
import { continueToWaiting, requireStopped, resetArrived, wasResetSince } from '../migrate/guest.js';
import { pauseDevices, runDestinations } from '../migrate/p2p.js';
import type { Vm } from '../migrate/parties.js';
import { putBackAt } from '../migrate/qemu-settings.js';
import { replay } from '../migrate/view.js';
import { forEachDevice, type Reach, warn } from '../phased.js';
import { Stopwatch } from '../stopwatch.js';
import { together } from '../waiting.js';
import { requireNewQemu } from './identity.js';
import { connectQemu, untilArrived } from './new-qemu.js';
import { type Exec, type Revocable, type State, watchedOf } from './phases.js';

/** How long a new program may take to come up, ms; nothing can be undone by then, so cancelling does not help. */
const EXEC_TIMEOUT_MS = 60_000;

export async function land(stopped: State<'stopped'>, reach: Reach<Revocable>): Promise<State<'landed'>> {
  const landing = reach({ ...stopped, tag: 'landing' });
  landing.report({ phase: 'land' });
  const whole = new Stopwatch();
  const { way } = landing;
  const arrived =
    way.mode === 'cpr-exec'
      ? await execute(landing, way, reach)
      : await complete(landing, way.destination, reach);
  const qemuMs = whole.elapsed;
  const { destination, settings, stand } = arrived;
  const isExec = way.mode === 'cpr-exec';
  // Once the old program is gone there is only the way forward.
  const signal = isExec ? AbortSignal.timeout(EXEC_TIMEOUT_MS) : arrived.signal;
  const stopwatch = new Stopwatch();
  // Not before: an old QEMU whose migration fails runs its VM again by itself, and must find its devices.
  // It can have been reset since, and its devices with it: then the new one is too, before it runs.
  if (!isExec) await requireStopped(watchedOf(arrived), signal);
  const wasReset = wasResetSince(arrived, stand);
  if (wasReset) await pauseDevices(arrived);
  await forEachDevice(arrived, ({ source: { device } }) => device.setNextVmm({ action: 'promote' }));
  const promoteMs = stopwatch.lap();
  await together([
    forEachDevice(arrived, (device) => replay(destination, device, signal)),
    putBackAt('destination', destination.qmp, settings.current).catch(warn(arrived)),
  ]);
  const replayMs = stopwatch.lap();
  signal.throwIfAborted();
  await runDestinations({ devices: arrived.devices, signal });
  const last = wasReset ? await resetThere(arrived, signal, reach) : arrived;
  const landed = { qemuMs, promoteMs, replayMs, resumeMs: stopwatch.lap() };
  return reach({ ...last, tag: 'landed', landed });
}

/** QEMU sends its own devices; RAM stays where it is. */
async function complete(
  landing: State<'landing'>,
  destination: Vm,
  reach: Reach<Revocable>,
): Promise<State<'arrived'>> {
  const { source, signal } = landing;
  await continueToWaiting({ source, destination }, signal);
  await together([
    destination.watch.waitFor('completed', { signal }),
    source.watch.waitFor('completed', { signal }),
  ]);
  return reach({ ...landing, tag: 'arrived', destination });
}

/** The old program writes its state to a file and becomes the new one, which reads it. */
async function execute(
  landing: State<'landing'>,
  way: Exec,
  reach: Reach<Revocable>,
): Promise<State<'arrived'>> {
  const { source, qmpPath } = landing;
  landing.signal.throwIfAborted();
  // Whether it was carried out cannot be taken back, or left open: QEMU executes the program when it has completed.
  const executing = reach({ ...landing, tag: 'executing', way });
  const signal = AbortSignal.timeout(EXEC_TIMEOUT_MS);
  const gone = source.qmp
    .waitForEvent(() => false, { signal })
    .then(
      () => false,
      () => false,
    );
  // A program that cannot be executed: QEMU had completed, says that it failed, and continues.
  const failed = source.watch.waitForAny(['failed'], { signal }).then(
    () => true,
    () => false,
  );
  try {
    await continueMigration(source.qmp, { signal });
  } catch (error) {
    if (error instanceof QmpCommandError) reach(landing);
    throw late(error, signal, 'QEMU has not executed the new program');
  }
  const hasFailed = await Promise.race([gone, failed]);
  if (!hasFailed && signal.aborted)
    throw late(signal.reason, signal, 'QEMU has not executed the new program');
  if (hasFailed) {
    reach(landing);
    const { error } = await queryMigration(source.qmp, { signal });
    const message = `QEMU could not execute the new program: ${error ?? 'its output says why'}`;
    throw new DevstateError('DEVSTATE_E_QEMU_MIGRATION', message);
  }
  const executed = reach({ ...executing, tag: 'executed' });
  try {
    const destination = await connectQemu(qmpPath, undefined, signal);
    const arrived = reach({ ...executed, tag: 'arrived', destination });
    await untilArrived(destination, signal);
    await requireNewQemu(arrived, destination, signal);
    return arrived;
  } catch (error) {
    throw late(error, signal, 'the new program cannot be asked, or has not read the VM');
  }
}

/** What a time that is over means. */
function late(error: unknown, signal: AbortSignal, what: string): unknown {
  if (!signal.aborted) return error;
  const message = `${what}, after ${EXEC_TIMEOUT_MS / 1000} s`;
  return new DevstateError('DEVSTATE_E_TIMEOUT', message, { cause: error });
}

async function resetThere(
  arrived: State<'arrived'>,
  signal: AbortSignal,
  reach: Reach<Revocable>,
): Promise<State<'resetting'>> {
  const resetting = reach({ ...arrived, tag: 'resetting' });
  await resetArrived(resetting.destination, signal);
  return resetting;
}
