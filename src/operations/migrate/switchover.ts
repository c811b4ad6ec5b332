// SPDX-License-Identifier: Apache-2.0
/**
 * Phase *switchover*: the VM has stopped at the source, QEMU waits at `pre-switchover`. The devices are quiesced,
 * QEMU's view of them captured, their last state and the list of pages they wrote taken. The source keeps everything.
 */

import { unlessAborted } from '../waiting.js';
import { collectDirty } from './dirty-pages.js';
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
  const [, locations] = await together([stopSources(run), locate(run)]);
  const quiesceMs = stopwatch.lap();
  // QEMU is asked for its view while the device servers give their state and their log.
  const [captureMs, { saveMs, dirtyLogMs }] = await together([
    timed(capture(run, locations)),
    save(run, new Stopwatch()),
  ]);
  run.signal.throwIfAborted();
  return { quiesceMs, captureMs, saveMs, dirtyLogMs, wallMs: stopwatch.elapsed };
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
