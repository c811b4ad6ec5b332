// SPDX-License-Identifier: Apache-2.0
/** Room for managers on a migration socket, and what those are told that find none or lose theirs. */

import { type Fd, MessageSocket } from '../transport/index.js';
import { encodeFarewell, vfioUserFraming } from '../wire/index.js';

/** Managers that may look at once. One of them drives a migration; the others are answered too. */
export const MAX_MANAGERS = 16;
/** One that has said nothing for so long makes room for another, ms. */
const SILENT_MS = 1000;

const TOO_MANY = `${MAX_MANAGERS} managers are connected and at work; end one of them, or try again when one has left`;
const SILENT = `it has been silent the longest of ${MAX_MANAGERS} managers, and another one came; connect again`;

export interface Manager {
  /** It waits for an answer, or drives a migration. */
  readonly isBusy: boolean;
  /** When it connected or last asked for something, of performance.now(). */
  readonly activeAt: number;
  /** Closes its connection, and says why. */
  sendAway(why: string): void;
}

/**
 * Makes room for one more: where there is none, the manager leaves that has been silent the longest.
 * @returns false when no one has left: the newcomer has been told so, and `fd` is closed
 */
export function makeRoom<M extends Manager>(managers: Set<M>, fd: Fd): boolean {
  if (managers.size < MAX_MANAGERS) return true;
  const before = performance.now() - SILENT_MS;
  let silent: M | undefined;
  for (const manager of managers) {
    if (manager.isBusy || manager.activeAt > before) continue;
    if (silent === undefined || manager.activeAt < silent.activeAt) silent = manager;
  }
  if (silent === undefined) {
    refuse(fd, TOO_MANY);
    return false;
  }
  managers.delete(silent);
  silent.sendAway(SILENT);
  return true;
}

/** Closes a connection that is not served, and says why. */
export function refuse(fd: Fd, why: string): void {
  const bytes = encodeFarewell(why);
  const limits = { maxMessageLength: bytes.length, maxFds: 0, maxQueuedBytes: bytes.length };
  const socket = new MessageSocket(fd, vfioUserFraming, limits, { message: () => {}, closed: () => {} });
  socket.send(bytes);
  socket.close();
}
