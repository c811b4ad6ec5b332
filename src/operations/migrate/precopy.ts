// SPDX-License-Identifier: Apache-2.0
/** Phase *precopy*: the VM runs, QEMU sends RAM, the devices log their DMA and send what they can send early. */

import { PageBitmap } from '../../migration/index.js';
import {
  applySettings,
  destinationSettings,
  planSettings,
  queryMigration,
  sourceSettings,
  startIncoming,
  startMigration,
  stopVm,
} from '../../qemu/index.js';
import { requireSameDevices } from '../identity/index.js';
import { beginning, forEachDevice, type Reach } from '../phased.js';
import { delay, unlessAborted } from '../waiting.js';
import { requireArriving } from './arrival.js';
import { DeviceStream } from './device-stream.js';
import { namedIn } from './identity.js';
import type { MovedDevice, SendingDevice } from './parties.js';
import { PauseControl } from './pause.js';
import type { Revocable, State } from './phases.js';
import { noteSettings } from './qemu-settings.js';
import { saidBy } from './reasons.js';
import { rehearse } from './rehearse.js';

/** How often devices are asked for more state and QEMU for its progress, ms. */
const ROUND_MS = 200;

/** Ends when QEMU waits, VM stopped, at `pre-switchover`. */
export async function precopy(
  checked: State<'checked'>,
  reach: Reach<Revocable>,
): Promise<State<'at-switchover'>> {
  const sending = reach({ ...checked, tag: 'sending', devices: checked.devices.map(sendingDevice) });
  await forEachDevice(sending, ({ stream }) => stream.begin());
  const devices = await unlessAborted(rehearse(sending), sending.signal);
  const pause = new PauseControl({ ...sending, devices });
  const rehearsed = reach({ ...sending, tag: 'rehearsed', devices, pause });
  await pause.begin();
  const migrating = await beginMigration(await prepareQemus(rehearsed, reach), reach);
  await requireSameDevices(migrating.source.qmp, 'source', namedIn(migrating.options), migrating.signal);
  await untilSwitchover(migrating);
  await requireArriving(migrating);
  return reach({ ...migrating, tag: 'at-switchover' });
}

function sendingDevice(device: MovedDevice): SendingDevice {
  const dirty = new PageBitmap();
  return { ...device, dirty, stream: new DeviceStream(device, dirty) };
}

/** Makes both QEMUs ready to migrate. */
async function prepareQemus(
  rehearsed: State<'rehearsed'>,
  reach: Reach<Revocable>,
): Promise<State<'configured'>> {
  const { options, source, destination, pause, signal } = rehearsed;
  const there = destinationSettings();
  const planned = await saidBy('destination', planSettings(destination.qmp, there, { signal }));
  const here = sourceSettings({ ...options, downtimeMs: pause.qemuMs });
  const settings = await noteSettings(rehearsed, here, planned);
  const configured = reach({ ...rehearsed, tag: 'configured', settings });
  await saidBy('source', applySettings(source.qmp, here, settings.current.source, { signal }));
  // While it waits, `stop` means: do not run when you have everything. As -S does, which may have been forgotten.
  await saidBy('destination', stopVm(destination.qmp, { signal }));
  await saidBy('destination', applySettings(destination.qmp, there, planned, { signal }));
  return configured;
}

async function beginMigration(
  configured: State<'configured'>,
  reach: Reach<Revocable>,
): Promise<State<'migrating'>> {
  const { options, source, destination, signal } = configured;
  await saidBy('destination', startIncoming(destination.qmp, options.uri, { signal }));
  destination.watch.begin();
  const begun = startMigration(source.qmp, options.uri, { signal });
  await saidBy(
    'source',
    beginning(begun, () => reach({ ...configured, tag: 'migrating' })),
  );
  source.watch.begin();
  return reach({ ...configured, tag: 'migrating' });
}

async function untilSwitchover(migrating: State<'migrating'>): Promise<void> {
  const { source, signal, pause } = migrating;
  const switchover = source.watch.waitFor('pre-switchover', { signal });
  let reached = false;
  const ended = switchover.finally(() => {
    reached = true;
  });
  // Observed at the end; until then a rejection only ends the loop.
  ended.catch(() => {});
  while (!reached) {
    await forEachDevice(migrating, ({ stream }) => stream.sendRound(signal));
    if (!reached) await pause.look(migrating);
    if (reached) break;
    await reportProgress(migrating);
    await Promise.race([ended.catch(() => {}), delay(ROUND_MS)]);
  }
  await switchover;
}

async function reportProgress({ source, devices, pause, signal, report }: State<'migrating'>): Promise<void> {
  const { ram } = await queryMigration(source.qmp, { signal });
  report({
    phase: 'precopy',
    ramRemaining: ram.remainingBytes,
    ramTotal: ram.totalBytes,
    ramTransferred: ram.transferredBytes,
    bitsPerSecond: ram.megabitsPerSecond * 1e6,
    ...(pause.expected === undefined ? {} : { expectedPauseMs: pause.expected.totalMs }),
    deviceBytes: devices.reduce((sum, { stream }) => sum + stream.precopyBytes, 0),
  });
}
