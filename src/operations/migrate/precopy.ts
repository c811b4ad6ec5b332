// SPDX-License-Identifier: Apache-2.0
/** Phase *precopy*: the VM runs, QEMU sends RAM, the devices log their DMA and send what they can send early. */

import { DevstateError } from '../../errors.js';
import { queryMigration, startIncoming, startMigration } from '../../qemu/index.js';
import { MigrationFlag, MigrationState } from '../../wire/index.js';
import { selectFormats } from '../state-plan.js';
import { delay, unlessAborted } from '../waiting.js';
import { sendRoundOf } from './again.js';
import { startLog } from './dirty-pages.js';
import { PauseControl } from './pause.js';
import { prepareQemus } from './qemu-settings.js';
import { saidBy } from './reasons.js';
import { rehearse } from './rehearse.js';
import { forEachDevice, type Run } from './run.js';

/** How often devices are asked for more state and QEMU for its progress, ms. */
const ROUND_MS = 200;
/** How long a destination that is busy may take to notice that a migration arrives, ms; the VM stands meanwhile. */
const ARRIVAL_MS = 5000;

/** Ends when QEMU waits, VM stopped, at `pre-switchover`. */
export async function precopy(run: Run): Promise<void> {
  const { signal, options, source, destination } = run;
  run.phase = 'precopy';
  // The destination takes state from the beginning, so that one that does not fit is refused while the VM runs.
  await forEachDevice(run, async ({ plan, source: from, destination: to }) => {
    await selectFormats(plan, from.device, to.device);
    await to.device.setState(MigrationState.RESUMING);
    // Before QEMU reads its first page: a write that it could miss must be in the log.
    await startLog(from.device);
    if ((from.flags & MigrationFlag.PRE_COPY) !== 0) await from.device.setState(MigrationState.PRE_COPY);
  });
  await unlessAborted(rehearse(run), signal);
  const pause = new PauseControl(run);
  run.pause = pause;
  await pause.begin();
  await prepareQemus(run, pause.qemuMs);
  await saidBy('destination', startIncoming(destination.qmp, options.uri, { signal }));
  await saidBy('source', startMigration(source.qmp, options.uri, { signal }));
  run.started = true;
  await untilSwitchover(run, pause);
  await requireArriving(run);
}

/**
 * The source has sent nearly all of its memory by now: the destination must be the one that got it. The URI may mean
 * another place to the source's QEMU than to the destination's, which has its own view of files and of the network.
 * @throws DEVSTATE_E_INCOMPATIBLE
 */
async function requireArriving({ destination, options, signal }: Run): Promise<void> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(ARRIVAL_MS)]);
  try {
    await destination.watch.waitFor('active', { signal: limit });
  } catch (error) {
    if (signal.aborted || !limit.aborted) throw error;
    const what = `what the source QEMU sends to ${options.uri} does not arrive at the destination QEMU (${destination.qmp.path})`;
    const message = `${what}: another QEMU takes it there. Give a --uri that means the same place to both QEMUs`;
    throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
  }
}

async function untilSwitchover(run: Run, pause: PauseControl): Promise<void> {
  const switchover = run.source.watch.waitFor('pre-switchover', { signal: run.signal });
  let reached = false;
  const ended = switchover.finally(() => {
    reached = true;
  });
  // Observed at the end; until then a rejection only ends the loop.
  ended.catch(() => {});
  while (!reached) {
    await sendRound(run);
    if (!reached) await pause.look();
    if (reached) break;
    await reportProgress(run, pause);
    await Promise.race([ended.catch(() => {}), delay(ROUND_MS)]);
  }
  await switchover;
}

async function sendRound(run: Run): Promise<void> {
  await forEachDevice(run, (device) => sendRoundOf(run, device));
}

async function reportProgress(run: Run, pause: PauseControl): Promise<void> {
  const { ram } = await queryMigration(run.source.qmp, { signal: run.signal });
  run.report({
    phase: 'precopy',
    ramRemaining: ram.remainingBytes,
    ramTotal: ram.totalBytes,
    ramTransferred: ram.transferredBytes,
    bitsPerSecond: ram.megabitsPerSecond * 1e6,
    ...(pause.expected === undefined ? {} : { expectedPauseMs: pause.expected.totalMs }),
    deviceBytes: run.devices.reduce((sum, { precopyBytes }) => sum + precopyBytes, 0),
  });
}
