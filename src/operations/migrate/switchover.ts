// SPDX-License-Identifier: Apache-2.0
/**
 * Phase *switchover*: the VM has stopped at the source, QEMU waits at `pre-switchover`. The devices are quiesced,
 * QEMU's view of them captured, their last state and the list of pages they wrote taken. The source keeps everything.
 */

import { capturePciView, findPciDevice, type PciLocation, silenceIntx } from '../../qemu/index.js';
import { unlessAborted, within } from '../waiting.js';
import { collectDirty } from './dirty-pages.js';
import { writeNote } from './note.js';
import { stopSources } from './p2p.js';
import { forEachDevice, type Run, Stopwatch, together } from './run.js';

/** How long the source's QEMU may take to show its view of a device, ms. */
const CAPTURE_TIMEOUT_MS = 30_000;

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
  const { signal } = run;
  // Where the devices are does not depend on them.
  const locating = forEachDevice(
    run,
    async ({ id }) => [id, await findPciDevice(qmp, id, { signal })] as const,
  );
  const [, located] = await together([stopSources(run), locating]);
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
    device.stopBytes = await device.transfer.finish(run.signal);
  });
  const saveMs = stopwatch.lap();
  await forEachDevice(run, ({ source, dirty }) =>
    unlessAborted(collectDirty(source.device, dirty), run.signal),
  );
  return { saveMs, dirtyLogMs: stopwatch.lap() };
}

async function capture(
  run: Run,
  locations: ReadonlyMap<string, PciLocation>,
  stopwatch: Stopwatch,
): Promise<number> {
  const { qtest } = run.source;
  const devices = run.devices.map(({ id }) => id);
  // What is written to the source's QEMU is waited for, so that a rollback comes after it.
  await forEachDevice(run, async (device) => {
    const location = locations.get(device.id)!;
    device.view = await within(CAPTURE_TIMEOUT_MS, capturePciView(qtest, location, device.like));
    // From here on the source needs help to go on, should we die.
    const { id, view } = device;
    await writeNote(device.source.device, { id, devices, view, running: run.wasRunning });
    run.signal.throwIfAborted();
    device.silenced = true;
    await within(CAPTURE_TIMEOUT_MS, silenceIntx(qtest, location, view));
  });
  return stopwatch.elapsed;
}
