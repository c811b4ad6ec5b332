// SPDX-License-Identifier: Apache-2.0
/**
 * Phase *switchover*: the VM has stopped at the source, QEMU waits at `pre-switchover`. The devices are quiesced,
 * QEMU's view of them captured, their last state and the list of pages they wrote taken. The source keeps everything.
 */

import { capturePciView, findPciDevice, type PciLocation, silenceIntx } from '../../qemu/index.js';
import { MigrationFlag, MigrationState } from '../../wire/index.js';
import { transferState } from '../state-stream.js';
import { collectDirty } from './dirty-pages.js';
import { writeNote } from './note.js';
import { forEachDevice, type Run, Stopwatch, together } from './run.js';

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
  const { qmp } = run.source;
  // Where the devices are does not depend on them.
  const locating = forEachDevice(run, async ({ id }) => [id, await findPciDevice(qmp, id)] as const);
  const [, located] = await together([quiesce(run), locating]);
  const quiesceMs = stopwatch.lap();
  const locations = new Map(located);
  // QEMU is asked for its view while the device servers give their state and their log.
  const [captureMs, { saveMs, dirtyLogMs }] = await together([
    capture(run, locations, new Stopwatch()),
    save(run, new Stopwatch()),
  ]);
  run.signal.throwIfAborted();
  return { quiesceMs, captureMs, saveMs, dirtyLogMs, wallMs: stopwatch.elapsed };
}

async function save(run: Run, stopwatch: Stopwatch): Promise<{ saveMs: number; dirtyLogMs: number }> {
  await forEachDevice(run, async (device) => {
    device.stopBytes = await transferState(device.source.device, device.destination.device, run.signal);
  });
  const saveMs = stopwatch.lap();
  await forEachDevice(run, ({ source, dirty }) => collectDirty(source.device, dirty));
  return { saveMs, dirtyLogMs: stopwatch.lap() };
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

async function capture(
  run: Run,
  locations: ReadonlyMap<string, PciLocation>,
  stopwatch: Stopwatch,
): Promise<number> {
  const { qtest } = run.source;
  await forEachDevice(run, async (device) => {
    const location = locations.get(device.id)!;
    device.view = await capturePciView(qtest, location, device.like);
    // From here on the source needs help to go on, should we die.
    await writeNote(device.source.device, { id: device.id, view: device.view, running: run.wasRunning });
    device.silenced = true;
    await silenceIntx(qtest, location, device.view);
  });
  return stopwatch.elapsed;
}
