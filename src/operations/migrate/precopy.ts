// SPDX-License-Identifier: Apache-2.0
/** Phase *precopy*: the VM runs, QEMU sends RAM, the devices log their DMA and send what they can send early. */

import { queryMigration, startIncoming, startMigration } from '../../qemu/index.js';
import { MigrationFlag, MigrationState } from '../../wire/index.js';
import { selectFormats } from '../state-plan.js';
import { delay, unlessAborted } from '../waiting.js';
import { collectDirty, LOG_PAGE_SIZE, startLog } from './dirty-pages.js';
import { prepareQemus } from './qemu-settings.js';
import { rehearse } from './rehearse.js';
import { forEachDevice, type Run } from './run.js';

/** How often devices are asked for more state and QEMU for its progress, ms. */
const ROUND_MS = 200;
/** How often the dirty logs are read, ms. */
const LOG_ROUND_MS = 1000;
/** What copying pages at the stop reaches, bytes per ms, on the careful side. */
const COPY_RATE = 500_000;

/** Ends when QEMU waits, VM stopped, at `pre-switchover`. */
export async function precopy(run: Run): Promise<void> {
  const { signal, options, source, destination } = run;
  run.phase = 'precopy';
  await prepareQemus(run);
  // The destination takes state from the beginning, so that one that does not fit is refused while the VM runs.
  await forEachDevice(run, async ({ plan, source: from, destination: to }) => {
    await selectFormats(plan, from.device, to.device);
    await to.device.setState(MigrationState.RESUMING);
    // Before QEMU reads its first page: a write that it could miss must be in the log.
    await startLog(from.device);
    if ((from.flags & MigrationFlag.PRE_COPY) !== 0) await from.device.setState(MigrationState.PRE_COPY);
  });
  await unlessAborted(rehearse(run), signal);
  await startIncoming(destination.qmp, options.uri, { signal });
  await startMigration(source.qmp, options.uri, { signal });
  await untilSwitchover(run);
}

async function untilSwitchover(run: Run): Promise<void> {
  const switchover = run.source.watch.waitFor('pre-switchover', { signal: run.signal });
  let reached = false;
  const ended = switchover.finally(() => {
    reached = true;
  });
  // Observed at the end; until then a rejection only ends the loop.
  ended.catch(() => {});
  let nextLogRound = performance.now() + LOG_ROUND_MS;
  while (!reached) {
    await sendRound(run);
    if (!reached && performance.now() >= nextLogRound) {
      await boundDirty(run);
      nextLogRound = performance.now() + LOG_ROUND_MS;
    }
    if (reached) break;
    await reportProgress(run);
    await Promise.race([ended.catch(() => {}), delay(ROUND_MS)]);
  }
  await switchover;
}

async function sendRound(run: Run): Promise<void> {
  await forEachDevice(run, async (device) => {
    if ((device.source.flags & MigrationFlag.PRE_COPY) === 0) return;
    device.precopyBytes += await device.transfer.round(run.signal);
  });
}

/**
 * Pages that a device has written are copied while the VM is stopped, so their number must not grow without bound. A
 * device that has written as many as half of the allowed pause can take writes by messages from then on: slower for the
 * guest, but QEMU notices those writes and sends the pages while the VM runs.
 */
async function boundDirty(run: Run): Promise<void> {
  const limit = (run.options.downtimeMs / 2) * (COPY_RATE / run.devices.length);
  await forEachDevice(run, async (device) => {
    if (device.byMessage) return;
    await collectDirty(device.source.device, device.dirty);
    if (device.dirty.count * LOG_PAGE_SIZE < limit) return;
    device.byMessage = await device.source.device.writeByMessage(true);
  });
}

async function reportProgress(run: Run): Promise<void> {
  const { ram } = await queryMigration(run.source.qmp, { signal: run.signal });
  run.report({
    phase: 'precopy',
    ramRemaining: ram.remainingBytes,
    ramTotal: ram.totalBytes,
    ramTransferred: ram.transferredBytes,
    bitsPerSecond: ram.megabitsPerSecond * 1e6,
    deviceBytes: run.devices.reduce((sum, { precopyBytes }) => sum + precopyBytes, 0),
  });
}
