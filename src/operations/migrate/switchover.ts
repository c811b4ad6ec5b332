// SPDX-License-Identifier: Apache-2.0
/**
 * Phase *switchover*: the VM has stopped at the source, QEMU waits at `pre-switchover`. The devices are quiesced,
 * QEMU's view of them captured, their last state and the list of pages they wrote taken. The source keeps everything.
 */

import { capturePciView, findPciDevice, silenceIntx } from '../../qemu/index.js';
import { MigrationFlag, MigrationState } from '../../wire/index.js';
import { transferState } from '../state-stream.js';
import { collectDirty } from './dirty-pages.js';
import { writeNote } from './note.js';
import { forEachDevice, type Run, type RunDevice, Stopwatch } from './run.js';

export interface SwitchoverTimes {
  readonly quiesceMs: number;
  readonly captureMs: number;
  readonly saveMs: number;
  readonly dirtyLogMs: number;
}

export async function switchover(run: Run): Promise<SwitchoverTimes> {
  run.phase = 'switchover';
  run.report({ phase: 'switchover' });
  run.signal.throwIfAborted();
  const stopwatch = new Stopwatch();
  await quiesce(run);
  const quiesceMs = stopwatch.lap();
  await forEachDevice(run, (device) => capture(run, device));
  const captureMs = stopwatch.lap();
  await forEachDevice(run, async (device) => {
    device.stopBytes = await transferState(device.source.device, device.destination.device, run.signal);
  });
  const saveMs = stopwatch.lap();
  await forEachDevice(run, ({ source, dirty }) => collectDirty(source.device, dirty));
  run.signal.throwIfAborted();
  return { quiesceMs, captureMs, saveMs, dirtyLogMs: stopwatch.lap() };
}

/** All devices end their DMA to each other before any of them stops. */
async function quiesce(run: Run): Promise<void> {
  await forEachDevice(run, async ({ source }) => {
    if ((source.flags & MigrationFlag.P2P) === 0) return;
    const { PRE_COPY_P2P, RUNNING_P2P } = MigrationState;
    await source.device.setState((source.flags & MigrationFlag.PRE_COPY) !== 0 ? PRE_COPY_P2P : RUNNING_P2P);
  });
  await forEachDevice(run, ({ source }) => source.device.setState(MigrationState.STOP_COPY));
}

async function capture(run: Run, device: RunDevice): Promise<void> {
  const { qmp, qtest } = run.source;
  const location = await findPciDevice(qmp, device.id);
  device.view = await capturePciView(qtest, location);
  // From here on the source needs help to go on, should we die.
  await writeNote(device.source.device, { id: device.id, view: device.view, running: run.wasRunning });
  device.silenced = true;
  await silenceIntx(qtest, location, device.view);
}
