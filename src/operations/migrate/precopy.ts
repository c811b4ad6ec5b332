// SPDX-License-Identifier: Apache-2.0
/** Phase *precopy*: the VM runs, QEMU sends RAM, the devices log their DMA and send what they can send early. */

import {
  configureDestination,
  configureSource,
  queryMigration,
  startIncoming,
  startMigration,
} from '../../qemu/index.js';
import { MigrationFlag, MigrationState } from '../../wire/index.js';
import { transferState } from '../state-stream.js';
import { startLog } from './dirty-pages.js';
import { forEachDevice, type Run } from './run.js';

/** How often devices are asked for more state and QEMU for its progress, ms. */
const ROUND_MS = 200;

/** Ends when QEMU waits, VM stopped, at `pre-switchover`. */
export async function precopy(run: Run): Promise<void> {
  const { signal, options, source, destination } = run;
  run.phase = 'precopy';
  await configureSource(source.qmp, {
    downtimeMs: options.downtimeMs,
    bytesPerSecond: options.bytesPerSecond,
    signal,
  });
  await configureDestination(destination.qmp, { signal });
  // The destination takes state from the beginning, so that one that does not fit is refused while the VM runs.
  await forEachDevice(run, async ({ source: from, destination: to }) => {
    await to.device.setState(MigrationState.RESUMING);
    // Before QEMU reads its first page: a write that it could miss must be in the log.
    await startLog(from.device);
    if ((from.flags & MigrationFlag.PRE_COPY) !== 0) await from.device.setState(MigrationState.PRE_COPY);
  });
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
  while (!reached) {
    await sendRound(run);
    if (reached) break;
    await reportProgress(run);
    await Promise.race([ended.catch(() => {}), delay(ROUND_MS)]);
  }
  await switchover;
}

async function sendRound(run: Run): Promise<void> {
  await forEachDevice(run, async (device) => {
    if ((device.source.flags & MigrationFlag.PRE_COPY) === 0) return;
    device.precopyBytes += await transferState(device.source.device, device.destination.device, run.signal);
  });
}

async function reportProgress(run: Run): Promise<void> {
  const { ram } = await queryMigration(run.source.qmp);
  run.report({
    phase: 'precopy',
    ramRemaining: ram.remainingBytes,
    ramTotal: ram.totalBytes,
    ramTransferred: ram.transferredBytes,
    bitsPerSecond: ram.megabitsPerSecond * 1e6,
    deviceBytes: run.devices.reduce((sum, { precopyBytes }) => sum + precopyBytes, 0),
  });
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
