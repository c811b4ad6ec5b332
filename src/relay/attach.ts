// SPDX-License-Identifier: Apache-2.0
/** Connecting to a device server and making sure that it can serve the VMM: the same version, the same device. */

import { asDevstateError, DevstateError } from '../errors.js';
import { Command, decodeVersion, HEADER_LENGTH } from '../wire/index.js';
import { BackEnd, type BackEndHandler, type KnownServer } from './back-end.js';
import { identityDifferences, learnIdentity } from './identity.js';
import { versionDifferences } from './version-filter.js';

/** A server that does not answer for so long serves somebody else, or hangs. */
const ATTACH_TIMEOUT_MS = 5000;

export interface AttachOptions {
  readonly path: string;
  /** The VMM's VERSION payload. */
  readonly proposal: Uint8Array;
  readonly handler: BackEndHandler;
  /** The server whose place it takes; undefined for the first one. */
  readonly predecessor: KnownServer | undefined;
}

export interface Attached {
  readonly back: BackEnd;
  /** Its VERSION payload. */
  readonly answer: Uint8Array;
}

/**
 * Connects, agrees on the version and learns what is served. Nothing of the VMM is replayed yet.
 * @throws DEVSTATE_E_CONNECT, DEVSTATE_E_REFUSED, DEVSTATE_E_INCOMPATIBLE with every reason
 */
export async function attach({ path, proposal, handler, predecessor }: AttachOptions): Promise<Attached> {
  const back = await BackEnd.connect(path, handler);
  try {
    const answer = await withinTime(back, async () => {
      const payload = await back.request(Command.VERSION, [proposal], (frame) => {
        back.version = decodeVersion(frame.view, HEADER_LENGTH, frame.length);
        if (back.maxTransfer === 0)
          throw new DevstateError('DEVSTATE_E_PROTOCOL', 'the server takes no transfer of any size');
        return frame.bytes.slice(HEADER_LENGTH, frame.length);
      });
      back.identity = await learnIdentity(back);
      return payload;
    });
    if (predecessor !== undefined) requireSame(predecessor, back);
    return { back, answer };
  } catch (error) {
    back.close();
    throw error;
  }
}

/** @throws DEVSTATE_E_INCOMPATIBLE */
function requireSame(now: KnownServer, next: KnownServer): void {
  const reasons = [
    ...versionDifferences(now.version, next.version),
    ...identityDifferences(now.identity, next.identity),
  ];
  if (reasons.length === 0) return;
  const message = `the server at ${next.path} does not serve what the VMM knows: ${reasons.join('; ')}`;
  throw new DevstateError('DEVSTATE_E_INCOMPATIBLE', message);
}

/** Ends the connection of a server that takes too long: everything that waits for it fails. */
export function withinTime<T>(
  back: BackEnd,
  work: () => Promise<T>,
  limitMs = ATTACH_TIMEOUT_MS,
): Promise<T> {
  return untilLate(back, work, limitMs, () => 0);
}

/** The same for work of any length, of many requests: a server that answers one of them in time has time for the next. */
export function whileItAnswers<T>(back: BackEnd, work: () => Promise<T>): Promise<T> {
  return untilLate(back, work, ATTACH_TIMEOUT_MS, () => back.answered);
}

async function untilLate<T>(
  back: BackEnd,
  work: () => Promise<T>,
  limitMs: number,
  progress: () => number,
): Promise<T> {
  let late = false;
  let seen = progress();
  const timer = setInterval(() => {
    late = progress() === seen;
    seen = progress();
    if (late) back.close();
  }, limitMs);
  try {
    return await work();
  } catch (cause) {
    if (!late) throw asDevstateError(cause);
    const message = `the device server at ${back.path} does not answer within ${Math.round(limitMs)} ms; does it serve another client?`;
    throw new DevstateError('DEVSTATE_E_TIMEOUT', message, { cause });
  } finally {
    clearInterval(timer);
  }
}
