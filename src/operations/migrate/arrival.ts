// SPDX-License-Identifier: Apache-2.0
/**
 * Whether what the source's QEMU sends arrives at the destination's. The URI may mean another place to the one than to the
 * other: each has its own view of files and of the network.
 */

import { DevstateError } from '../../errors.js';
import { queryMigration } from '../../qemu/index.js';
import { delay } from '../waiting.js';
import type { Parties } from './parties.js';

/**
 * How often the destination is asked whether a migration has reached it, and what passes between two questions, ms. Each answer
 * comes from the loop in which QEMU takes a connection: one that is slow answers late, and is not asked more often. What
 * is left of the time is for a packet that the network has lost and sends again.
 */
const ANSWERS = 20;
const ASK_AGAIN_MS = 100;

/**
 * The source has sent nearly all of its memory, and the VM stands: the destination must be the one that got it.
 * @throws DEVSTATE_E_INCOMPATIBLE
 */
export async function requireArriving(parties: Parties): Promise<void> {
  const { destination, signal } = parties;
  const ended = new AbortController();
  const arrived = destination.watch.waitFor('active', { signal: AbortSignal.any([signal, ended.signal]) });
  let isSettled = false;
  const settled = arrived.then(
    () => {
      isSettled = true;
    },
    () => {
      isSettled = true;
    },
  );
  for (let answers = 0; answers < ANSWERS && !isSettled; answers++) {
    await Promise.race([settled, queryMigration(destination.qmp, { signal })]);
    await Promise.race([settled, delay(ASK_AGAIN_MS)]);
  }
  if (isSettled) return arrived;
  ended.abort();
  throw await notArriving(parties);
}

/** What is known, for the operator who looks for the place where the two part. */
async function notArriving({ source, destination, options, signal }: Parties): Promise<DevstateError> {
  const [{ ram }, { status, listensAt }] = [
    await queryMigration(source.qmp, { signal }),
    await queryMigration(destination.qmp, { signal }),
  ];
  const sent = `the source QEMU has sent ${ram.transferredBytes} bytes to ${options.uri}`;
  const where = listensAt.length === 0 ? '' : `, listening at ${listensAt.join(', ')}`;
  const waits = `the destination QEMU (${destination.qmp.path}) answers and has got none of them: it is in ${status}${where}`;
  const message = `${sent}; ${waits}. Give a --uri that means the same place to both QEMUs`;
  return new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}
