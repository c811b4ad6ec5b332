// SPDX-License-Identifier: Apache-2.0
/**
 * Phase *switchover*: the VM stands; the devices are stopped and QEMU's view of them is captured. Meanwhile a new process
 * has made its devices, and can be asked.
 */

import { applySettings, destinationSettings, planSettings } from '../../qemu/index.js';
import { requireStanding, standOf, wasResetSince } from '../migrate/guest.js';
import { pauseDevices } from '../migrate/p2p.js';
import { capture, locate } from '../migrate/view.js';
import type { Reach } from '../phased.js';
import { Stopwatch } from '../stopwatch.js';
import { together, unlessAborted } from '../waiting.js';
import { requireNewQemu } from './identity.js';
import { connectQemu } from './new-qemu.js';
import type { CapturedDevice } from './parties.js';
import { type ReadyWay, type Revocable, type State, watchedOf } from './phases.js';

export async function switchover(
  from: State<'at-switchover'>,
  reach: Reach<Revocable>,
): Promise<State<'stopped'>> {
  const first = reach({ ...from, tag: 'stopping', stand: standOf(from), silenced: new Map() });
  const { signal, report } = first;
  report({ phase: 'switchover' });
  signal.throwIfAborted();
  const stopwatch = new Stopwatch();
  const [{ last, devices, quiesceMs }, way] = await together([
    quiesce(first, reach, stopwatch),
    connectDestination(from),
  ]);
  signal.throwIfAborted();
  const stopped = { quiesceMs, captureMs: stopwatch.lap() };
  return reach({ ...last, tag: 'stopped', way, devices, stopped });
}

interface Quiesced {
  readonly last: State<'stopping'>;
  readonly devices: readonly CapturedDevice[];
  readonly quiesceMs: number;
}

async function quiesce(
  stopping: State<'stopping'>,
  reach: Reach<Revocable>,
  stopwatch: Stopwatch,
): Promise<Quiesced> {
  const { source, signal } = stopping;
  const settled = unlessAborted(source.guest.settled(), signal);
  const [, locations] = await together([pauseDevices(stopping), locate(stopping), settled]);
  const quiesceMs = stopwatch.lap();
  const devices = await capture(stopping, locations);
  await requireStanding(watchedOf(stopping), signal);
  if (!wasResetSince(stopping, stopping.stand)) return { last: stopping, devices, quiesceMs };
  // Reset while it stood: its devices run again, and QEMU's view of them is another one.
  return quiesce(reach({ ...stopping, stand: standOf(stopping) }), reach, stopwatch);
}

/** The new process, which makes its devices while the old one's VM still runs. */
async function connectDestination(from: State<'at-switchover'>): Promise<ReadyWay> {
  const { way, settings, qmpPath, signal } = from;
  if (way.mode === 'cpr-exec') return way;
  const destination = await connectQemu(qmpPath, way.qemu.process, signal);
  way.qemu.vm = destination;
  const { qmp } = destination;
  await requireNewQemu(from, destination, signal);
  const wanted = destinationSettings();
  const planned = await planSettings(qmp, wanted, { signal });
  // No note has them: they are put back before the VM runs there, and a QEMU in which it does not run is ended.
  settings.current = { ...settings.current, destination: planned };
  await applySettings(qmp, wanted, planned, { signal });
  return { ...way, destination };
}
