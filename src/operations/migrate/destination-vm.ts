// SPDX-License-Identifier: Apache-2.0
/**
 * Whether the VM runs at the destination, and making sure that it never will. Only a VM that surely does not run there
 * may run at the source, and a connection that is lost is no proof: QEMU may be there still.
 */

import { constants } from 'node:os';
import { DevstateError } from '../../errors.js';
import { QmpClient, QmpCommandError, queryRunState } from '../../qemu/index.js';
import { delay } from '../waiting.js';

/** How long to wait before looking again whether a QEMU that is ending has ended, ms. */
const LOOK_AGAIN_MS = 20;
/** How long a process that was killed may take to end, ms. */
const ENDING_MS = 2000;

/** What connecting to a socket fails with when no process listens there. */
const NOT_LISTENING: readonly (number | undefined)[] = [constants.errno.ENOENT, constants.errno.ECONNREFUSED];

/** Connects to a QEMU; undefined when there is none. @throws when that cannot be told: another client holds its QMP */
export async function connectIfThere(path: string, signal: AbortSignal): Promise<QmpClient | undefined> {
  try {
    return await QmpClient.connect(path, { signal });
  } catch (error) {
    const cause = error instanceof DevstateError ? error.cause : undefined;
    if (cause instanceof DevstateError && NOT_LISTENING.includes(cause.errno)) return undefined;
    throw error;
  }
}

/** Ends a QEMU; settles when no process listens at its QMP socket any more. @throws when it may still be there after `ms` */
export async function quit(qmp: QmpClient, ms: number): Promise<void> {
  const signal = AbortSignal.timeout(ms);
  try {
    await requestQuit(qmp, signal);
    while (!signal.aborted) {
      const again = await connectIfThere(qmp.path, signal).catch(() => 'unknown' as const);
      if (again === undefined) return;
      if (again !== 'unknown') await requestQuit(again, signal).finally(() => again.close());
      // While it ends it may still take a connection, and drop it.
      await delay(LOOK_AGAIN_MS);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  }
  throw new DevstateError('DEVSTATE_E_REQUEST_TIMEOUT', `it has not ended within ${ms / 1000} s`);
}

/** Settles when the connection has ended, whatever the answer is. */
async function requestQuit(qmp: QmpClient, signal: AbortSignal): Promise<void> {
  const lost = qmp.waitForEvent(() => false, { signal });
  await qmp.execute('quit', { signal }).catch(() => {});
  await lost.catch(() => {});
  signal.throwIfAborted();
}

/** How a VM was started. */
export type Started = 'runs' | 'refused' | 'unknown';

/**
 * Has a VM run. When the answer is lost, QEMU is asked anew.
 * @returns `refused`, with QEMU's words, only when it surely does not run; `unknown` when that cannot be known
 */
export async function start(
  qmp: QmpClient,
  hasResumed: () => boolean,
  ms: number,
): Promise<{ outcome: Started; error?: unknown }> {
  try {
    await qmp.execute('cont', { signal: AbortSignal.timeout(ms) });
    return { outcome: 'runs' };
  } catch (error) {
    if (hasResumed()) return { outcome: 'runs' };
    if (error instanceof QmpCommandError) return { outcome: 'refused', error };
    const runs = await askAnew(qmp, AbortSignal.timeout(ms)).catch(() => undefined);
    if (runs === undefined) return { outcome: 'unknown', error };
    return runs ? { outcome: 'runs' } : { outcome: 'refused', error };
  }
}

/** Like {@link connectIfThere}. One that is ending may take a connection still, and drop it: it is given time to end. */
async function connectAgain(path: string, signal: AbortSignal): Promise<QmpClient | undefined> {
  const deadline = performance.now() + ENDING_MS;
  for (;;) {
    try {
      return await connectIfThere(path, signal);
    } catch (error) {
      if (performance.now() >= deadline) throw error;
    }
    await delay(LOOK_AGAIN_MS);
  }
}

/** Whether the VM runs, by whatever connection can be had. */
async function askAnew(qmp: QmpClient, signal: AbortSignal): Promise<boolean> {
  const again = await connectAgain(qmp.path, signal);
  if (again === undefined) return false;
  try {
    const { status } = await queryRunState(again, { signal });
    return status === 'running' || status === 'suspended';
  } finally {
    again.close();
  }
}
