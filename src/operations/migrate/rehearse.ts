// SPDX-License-Identifier: Apache-2.0
/**
 * Goes through the steps of the pause once, while the VM still runs at the source. The first run of any code costs
 * milliseconds (it is compiled then, here and in the device servers), which are better spent now than while a guest
 * waits; and a destination that cannot do its part shows it now.
 *
 * The destination's VM is paused and empty: QEMU's view of its fresh device is captured and replayed onto itself. Nothing
 * that it will hold later is touched. Copying pages is rehearsed where its rate is measured (pause.ts).
 */

import type { MigrationClient } from '../../client/index.js';
import { DevstateError } from '../../errors.js';
import { capturePciView, findShownPciDevice, readConfig, replayPciView } from '../../qemu/index.js';
import { DmaMapFlag } from '../../wire/index.js';
import { forEachDevice } from '../phased.js';
import { Stopwatch } from '../stopwatch.js';
import { collectDirty } from './dirty-pages.js';
import type { Parties, RehearsedDevice, RehearsedView, SendingDevice } from './parties.js';

/** Size of a window, bytes. */
const WINDOW = 2 ** 30;
/** Most ranges that are touched, the largest: of 65,535, each has little that a device may need. */
const TOUCHED = 256;

export async function rehearse(sending: Parties<SendingDevice>): Promise<RehearsedDevice[]> {
  return forEachDevice(sending, async (device) => {
    const rehearsed = await rehearseView(sending, device);
    await touchMemory(device.source.device);
    await touchMemory(device.destination.device);
    await collectDirty(device.source.device, device.dirty);
    return { ...device, rehearsed };
  });
}

async function rehearseView(
  { destination: { qmp, qtest }, signal }: Parties,
  { id }: SendingDevice,
): Promise<RehearsedView | undefined> {
  // Behind a bridge that has no number yet QEMU shows it only when the guest's state is there.
  const location = await findShownPciDevice(qmp, id, { signal });
  if (location === undefined) return undefined;
  const like = await readConfig(qtest, location);
  await replayPciView(qtest, location, await capturePciView(qtest, location, like));
  // Once more: what is to be known is how long it takes when the code has run before.
  const again = new Stopwatch();
  await replayPciView(qtest, location, await capturePciView(qtest, location, like));
  return { like, viewMs: again.elapsed };
}

/** Guest memory is seen through windows, which are made, at some cost, when they are first touched. */
async function touchMemory(device: MigrationClient): Promise<void> {
  const maps = (await device.dmaMaps()).filter(({ flags }) => (flags & DmaMapFlag.READ) !== 0);
  for (const map of maps.sort((a, b) => b.size - a.size).slice(0, TOUCHED)) {
    try {
      for (let at = 0; at < map.size; at += WINDOW)
        await device.readMemory(map.address + at, new Uint8Array(1));
    } catch (error) {
      // A range without an fd is reached by messages, which QEMU refuses until the guest has enabled bus mastering.
      if (!(error instanceof DevstateError) || error.code !== 'DEVSTATE_E_REFUSED') throw error;
    }
  }
}
