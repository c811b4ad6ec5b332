// SPDX-License-Identifier: Apache-2.0
/**
 * Phase *switchover*: the VM has stopped at the source, QEMU waits at `pre-switchover`. The devices are quiesced,
 * QEMU's view of them captured, their last state and the list of pages they wrote taken. The source keeps everything.
 */

import { unlessAborted } from '../waiting.js';
import { discardSaved, makeReady } from './again.js';
import { collectDirty } from './dirty-pages.js';
import { requireStanding, standOf, wasResetSince } from './guest.js';
import { stopSources } from './p2p.js';
import { forEachDevice, type Run, Stopwatch, timed, together } from './run.js';
import { capture, locate } from './view.js';

/** Milliseconds. The parts overlap, so `wallMs` is less than their sum. */
export interface SwitchoverTimes {
  readonly quiesceMs: number;
  readonly captureMs: number;
  readonly saveMs: number;
  readonly dirtyLogMs: number;
  readonly wallMs: number;
}

export async function switchover(run: Run): Promise<SwitchoverTimes> {
  run.phase = 'switchover';
  run.report({ phase: 'switchover' });
  run.signal.throwIfAborted();
  const stopwatch = new Stopwatch();
  let times = await saveAll(run);
  // Reset while it stood: what was saved is of a VM that is no more.
  while (await isOutdated(run)) {
    await discardSaved(run);
    times = await saveAll(run);
  }
  run.signal.throwIfAborted();
  return { ...times, wallMs: stopwatch.elapsed };
}

async function saveAll(run: Run): Promise<Omit<SwitchoverTimes, 'wallMs'>> {
  const stopwatch = new Stopwatch();
  run.stand = standOf(run);
  await makeReady(run);
  const [, locations] = await together([stopSources(run), locate(run), run.source.guest.settled()]);
  const quiesceMs = stopwatch.lap();
  // QEMU is asked for its view while the device servers give their state and their log.
  const [captureMs, { saveMs, dirtyLogMs }] = await together([
    timed(capture(run, locations)),
    save(run, new Stopwatch()),
  ]).catch(async (error: unknown) => {
    if (run.signal.aborted || !(await isOutdated(run))) throw error;
    return [0, { saveMs: 0, dirtyLogMs: 0 }] as const;
  });
  return { quiesceMs, captureMs, saveMs, dirtyLogMs };
}

/** Asks QEMU, so that all that has happened before is known. */
async function isOutdated(run: Run): Promise<boolean> {
  await requireStanding(run, run.signal);
  return wasResetSince(run, run.stand);
}

async function save(run: Run, stopwatch: Stopwatch): Promise<{ saveMs: number; dirtyLogMs: number }> {
  await forEachDevice(run, async (device) => {
    device.stopBytes = await device.transfer.finish(run.signal);
  });
  const saveMs = stopwatch.lap();
  await forEachDevice(run, ({ source, dirty }) =>
    unlessAborted(collectDirty(source.device, dirty), run.signal),
  );
  return { saveMs, dirtyLogMs: stopwatch.lap() };
}
