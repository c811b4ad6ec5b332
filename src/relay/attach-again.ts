// SPDX-License-Identifier: Apache-2.0
/** Looking for a device server at its path: the first one of a session, and the next one when it has died. */

import { asDevstateError } from '../errors.js';
import { type Attached, withinTime } from './attach.js';
import type { Session, SessionOptions } from './session.js';

type SearchOptions = Pick<SessionOptions, 'serverPath' | 'holdMs' | 'log'>;

/** How often, at first and when the VMM has been told that there is none, ms. */
const LOOK_AGAIN_MS = 10;
const LOOK_AGAIN_LATER_MS = 100;

/** The first server: one that does not listen yet may come within the time that the VMM can wait. @throws as `attach` */
export async function attachFirst(session: Session, options: SearchOptions): Promise<Attached> {
  const since = performance.now();
  for (;;) {
    try {
      return await session.attach(options.serverPath());
    } catch (error) {
      const mayCome = asDevstateError(error).code === 'DEVSTATE_E_CONNECT';
      if (session.isClosed || !mayCome || performance.now() - since > options.holdMs) throw error;
    }
    await delay(LOOK_AGAIN_MS);
  }
}

/** Goes on until a server is there that takes the place of the one before, or the VMM leaves. Never rejects. */
export async function attachAgain(session: Session, options: SearchOptions): Promise<void> {
  const since = performance.now();
  let said = '';
  while (!session.isClosed && session.back === undefined) {
    try {
      await replaceLost(session, options.serverPath());
      const ms = (performance.now() - since).toFixed(1);
      options.log('info', `attached to the device server again after ${ms} ms`);
      return;
    } catch (error) {
      const { code, message } = asDevstateError(error);
      if (code !== 'DEVSTATE_E_CONNECT' && message !== said && !session.isClosed)
        options.log('warn', message);
      said = message;
    }
    const isLate = performance.now() - since > options.holdMs;
    await delay(isLate ? LOOK_AGAIN_LATER_MS : LOOK_AGAIN_MS);
  }
}

async function replaceLost(session: Session, path: string): Promise<void> {
  const { back } = await session.attach(path);
  try {
    await withinTime(back, async () => {
      await session.replay(back);
      await session.log.replayConfig(back);
    });
  } catch (error) {
    session.discard(back);
    throw error;
  }
  // Another one may have been adopted meanwhile.
  if (session.back === undefined) session.adopt(back);
  else session.discard(back);
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
