// SPDX-License-Identifier: Apache-2.0
/**
 * Phase *switchover*: the VM has stopped at the source, QEMU waits at `pre-switchover`. The devices are quiesced,
 * QEMU's view of them captured, their last state and the list of pages they wrote taken. The source keeps everything.
 */

import type { PciView } from '../../qemu/index.js';
import { MigrationState } from '../../wire/index.js';
import { forEachDevice, type Reach } from '../phased.js';
import { Stopwatch } from '../stopwatch.js';
import { together, unlessAborted } from '../waiting.js';
import { collectDirty } from './dirty-pages.js';
import { requireStanding, standOf, wasResetSince } from './guest.js';
import { stopSources } from './p2p.js';
import type { CapturedDevice } from './parties.js';
import { type Revocable, type State, type SwitchoverTimes, watchedOf } from './phases.js';
import { capture, clearSilence, type Locations, locate } from './view.js';

export async function switchover(
  from: State<'at-switchover'>,
  reach: Reach<Revocable>,
): Promise<State<'stopped'>> {
  const { report, signal } = from;
  const begin = (): State<'stopping'> =>
    reach({ ...from, tag: 'stopping', stand: standOf(from), silenced: new Map<string, PciView>() });
  let stopping = begin();
  report({ phase: 'switchover' });
  signal.throwIfAborted();
  const stopwatch = new Stopwatch();
  let all = await saveAll(stopping);
  // Reset while it stood: what was saved is of a VM that is no more.
  while (all === undefined) {
    await discardSaved(stopping);
    stopping = begin();
    all = await saveAll(stopping);
  }
  signal.throwIfAborted();
  const { devices, times } = all;
  return reach({ ...stopping, tag: 'stopped', devices, saved: { ...times, wallMs: stopwatch.elapsed } });
}

interface Saved {
  readonly devices: readonly CapturedDevice[];
  readonly times: Omit<SwitchoverTimes, 'wallMs'>;
}

/** @returns undefined when the VM was reset meanwhile */
async function saveAll(stopping: State<'stopping'>): Promise<Saved | undefined> {
  const stopwatch = new Stopwatch();
  await forEachDevice(stopping, ({ stream }) => stream.makeReady());
  const settled = unlessAborted(stopping.source.guest.settled(), stopping.signal);
  const [, locations] = await together([stopSources(stopping), locate(stopping), settled]);
  const quiesceMs = stopwatch.lap();
  // QEMU is asked for its view while the device servers give their state and their log.
  const saved = await together([
    captureAll(stopping, locations, new Stopwatch()),
    save(stopping, new Stopwatch()),
  ]).catch(async (error: unknown) => {
    if (stopping.signal.aborted || !(await isOutdated(stopping))) throw error;
    return undefined;
  });
  if (saved === undefined || (await isOutdated(stopping))) return undefined;
  const [{ devices, captureMs }, { saveMs, dirtyLogMs }] = saved;
  return { devices, times: { quiesceMs, captureMs, saveMs, dirtyLogMs } };
}

async function captureAll(
  stopping: State<'stopping'>,
  locations: Locations,
  stopwatch: Stopwatch,
): Promise<{ devices: CapturedDevice[]; captureMs: number }> {
  const devices = await capture(stopping, locations);
  return { devices, captureMs: stopwatch.elapsed };
}

async function save(
  { devices, signal }: State<'stopping'>,
  stopwatch: Stopwatch,
): Promise<{ saveMs: number; dirtyLogMs: number }> {
  await forEachDevice({ devices }, ({ stream }) => stream.finish(signal));
  const saveMs = stopwatch.lap();
  await forEachDevice({ devices }, ({ source, dirty }) =>
    unlessAborted(collectDirty(source.device, dirty), signal),
  );
  return { saveMs, dirtyLogMs: stopwatch.lap() };
}

/** Asks QEMU, so that all that has happened before is known. */
async function isOutdated(stopping: State<'stopping'>): Promise<boolean> {
  await requireStanding(watchedOf(stopping), stopping.signal);
  return wasResetSince(stopping, stopping.stand);
}

/** The VM was reset after its devices had been stopped: nothing that was saved holds. They run, as reset has them. */
async function discardSaved(stopping: State<'stopping'>): Promise<void> {
  await forEachDevice(stopping, async ({ id, source, stream }) => {
    // A server that takes no reset while its device is stopped does it now: a relay has kept it.
    await source.device.setState(MigrationState.RUNNING);
    await stream.beginAgain();
    const view = stopping.silenced.get(id);
    if (view !== undefined) await clearSilence(stopping.source, { id, view }, stopping.signal);
    stopping.silenced.delete(id);
  });
}
