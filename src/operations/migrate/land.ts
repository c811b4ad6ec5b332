// SPDX-License-Identifier: Apache-2.0
/**
 * Phase *land*: QEMU completes, and the destination's devices become what the source's were. The source could continue
 * at any moment.
 */

import type { MigrationProtocol } from '../../migration/index.js';
import { requireSameDevices } from '../identity/index.js';
import { forEachDevice, type Reach, warn } from '../phased.js';
import { Stopwatch, timed } from '../stopwatch.js';
import { together, unlessAborted } from '../waiting.js';
import { LOG_PAGE_SIZE } from './dirty-pages.js';
import { continueToWaiting, requireStopped, resetArrived, wasResetSince } from './guest.js';
import { namedIn } from './identity.js';
import { runDestinations } from './p2p.js';
import { type Revocable, type State, watchedOf } from './phases.js';
import { putBackAt } from './qemu-settings.js';
import { isUndone } from './rollback.js';
import { replay } from './view.js';

export async function land(stopped: State<'stopped'>, reach: Reach<Revocable>): Promise<State<'landed'>> {
  const landing = reach({ ...stopped, tag: 'landing' });
  const { destination, options, settings, signal, report } = landing;
  report({ phase: 'land' });
  const stopwatch = new Stopwatch();
  // The devices' state is all there and needs nothing of QEMU's. Their pages come after: QEMU's would overwrite them.
  const [qemuMs, loadMs] = await together([
    complete(landing, new Stopwatch()),
    load(landing, new Stopwatch()),
  ]);
  const [{ spent, pagesMs, pageBytes }, replayMs] = await together([
    copyPages(landing, reach, new Stopwatch()),
    timed(replayAll(landing, 'v2')),
    requireSameDevices(destination.qmp, 'destination', namedIn(options), signal),
    // While there is other work: once it runs the VM, this process may have ended.
    putBackAt('destination', destination.qmp, settings.current).catch(warn(landing)),
  ]);
  stopwatch.lap();
  signal.throwIfAborted();
  await together([runDestinations(spent), requireStopped(watchedOf(spent), signal)]);
  // A device of v1 becomes only now what was loaded, and would undo what was written to its registers before.
  await replayAll(spent, 'v1');
  const last = wasResetSince(spent, spent.stand) ? await resetThere(spent, reach) : spent;
  const resumeMs = stopwatch.lap();
  const wallMs = stopwatch.elapsed - qemuMs;
  const landed = { qemuMs, loadMs, pagesMs, replayMs, resumeMs, wallMs, pageBytes };
  return reach({ ...last, tag: 'landed', landed });
}

/** QEMU sends what is left of RAM, and its own devices. */
async function complete(landing: State<'landing'>, stopwatch: Stopwatch): Promise<number> {
  const { source, destination, signal } = landing;
  const completed = () => source.watch.waitFor('completed', { signal });
  await continueToWaiting(landing, signal).catch(async (error: unknown) => {
    // One that has ended meanwhile has a reason, and its refusal is not it.
    if (isUndone(source)) await completed();
    throw error;
  });
  await together([destination.watch.waitFor('completed', { signal }), completed()]);
  return stopwatch.elapsed;
}

/** A destination checks what it was given and takes the image over, before any register of it is written. */
async function load(landing: State<'landing'>, stopwatch: Stopwatch): Promise<number> {
  await forEachDevice(landing, ({ destination: to }) =>
    unlessAborted(to.device.commitLoad(), landing.signal),
  );
  return stopwatch.elapsed;
}

async function copyPages(
  landing: State<'landing'>,
  reach: Reach<Revocable>,
  stopwatch: Stopwatch,
): Promise<{ spent: State<'source-spent'>; pagesMs: number; pageBytes: number }> {
  const { signal } = landing;
  const copied = await forEachDevice(landing, async ({ copier, dirty }) => {
    const copy = (): Promise<number> => copier.copy(dirty.ranges(LOG_PAGE_SIZE), signal);
    try {
      return await copy();
    } catch (error) {
      // QEMU maps the source's memory anew when somebody resets it.
      await requireStopped(watchedOf(landing), signal);
      if (!wasResetSince(landing, landing.stand)) throw error;
      return copy();
    }
  });
  const spent = reach({ ...landing, tag: 'source-spent' });
  return {
    spent,
    pagesMs: stopwatch.elapsed,
    pageBytes: copied.reduce((sum, bytes) => sum + bytes, 0),
  };
}

/** For the destinations of one protocol. */
async function replayAll(
  { destination, devices, signal }: State<'landing'> | State<'source-spent'>,
  protocol: MigrationProtocol,
): Promise<void> {
  await forEachDevice({ devices }, async (device) => {
    if (device.destination.device.protocol === protocol) await replay(destination, device, signal);
  });
}

async function resetThere(
  spent: State<'source-spent'>,
  reach: Reach<Revocable>,
): Promise<State<'resetting'>> {
  const resetting = reach({ ...spent, tag: 'resetting' });
  await resetArrived(resetting.destination, resetting.signal);
  return resetting;
}
