// SPDX-License-Identifier: Apache-2.0
/**
 * A device whose saving has been ended by a reset: the guest rebooted, or its driver reset the device. A reset brings a
 * device back to RUNNING from every migration state; the stream that it had begun has no end any more, and what the
 * destination has loaded of it is worth nothing. Both begin anew. The log of what the device writes goes on.
 */

import { MigrationFlag, MigrationState } from '../../wire/index.js';
import { selectFormats } from '../state-plan.js';
import { createTransfer } from '../state-transfer.js';
import { collectDirty } from './dirty-pages.js';
import { forEachDevice, type Run, type RunDevice, Stopwatch } from './run.js';

const { RUNNING, RESUMING, PRE_COPY } = MigrationState;

/** A round that moved less says nothing of the rate of longer ones: it is all round trips. */
const RATE_BYTES = 64 * 1024;

const hasPrecopy = ({ source }: RunDevice): boolean => (source.flags & MigrationFlag.PRE_COPY) !== 0;

/** Whether the device does not save any more what it had begun to save. */
export async function hasLeftPrecopy(device: RunDevice): Promise<boolean> {
  return hasPrecopy(device) && (await device.source.device.state()) === RUNNING;
}

/** One round of a device in pre-copy; begins the saving anew where a reset has ended it. */
export async function sendRoundOf(run: Run, device: RunDevice): Promise<void> {
  if (!hasPrecopy(device)) return;
  if (await hasLeftPrecopy(device)) {
    await beginAgain(device);
    await device.source.device.setState(PRE_COPY);
  }
  try {
    const round = new Stopwatch();
    const bytes = await device.transfer.round(run.signal);
    device.precopyBytes += bytes;
    if (bytes >= RATE_BYTES) device.stateRate = bytes / round.elapsed;
  } catch (error) {
    // In the middle of it: the next round begins anew.
    if (run.signal.aborted || !(await hasLeftPrecopy(device))) throw error;
  }
}

/** The VM stands: devices that were reset since they were last looked at have their destinations ready for a whole state. */
export async function makeReady(run: Run): Promise<void> {
  await forEachDevice(run, async (device) => {
    if (await hasLeftPrecopy(device)) await beginAgain(device);
  });
}

/** The VM was reset after its devices had been stopped: nothing that was saved holds. They run, as reset has them. */
export async function discardSaved(run: Run): Promise<void> {
  await forEachDevice(run, async (device) => {
    // A server that takes no reset while its device is stopped does it now: a relay has kept it.
    await device.source.device.setState(RUNNING);
    await beginAgain(device);
    device.view = undefined;
    device.silenced = false;
  });
}

async function beginAgain(device: RunDevice): Promise<void> {
  const { plan, source, destination } = device;
  // Throws where the reset has ended the log too: what the device has written since, its server does not know.
  await collectDirty(source.device, device.dirty);
  await destination.device.reset();
  await selectFormats(plan, source.device, destination.device);
  await destination.device.setState(RESUMING);
  device.transfer = createTransfer(plan, source.device, destination.device);
}
