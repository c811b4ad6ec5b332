// SPDX-License-Identifier: Apache-2.0
/** Looking for a device server at its path: the first one of a session, and the next one when it has died. */

import { asDevstateError } from '../errors.js';
import { type Attached, whileItAnswers } from './attach.js';
import type { BackEnd } from './back-end.js';

export interface SearchOptions {
  /** Where the device server listens. */
  readonly serverPath: () => string;
  /** How long a request of the VMM may wait for a server, ms. */
  readonly holdMs: number;
  readonly log: (level: 'info' | 'warn' | 'error', message: string) => void;
}

/** A session's servers, as far as one is looked for. */
interface Searching {
  readonly isClosed: boolean;
  /** There is no server, and there should be one. */
  readonly isSearching: boolean;
  readonly back: BackEnd | undefined;
  attach(path: string): Promise<Attached>;
  replay(back: BackEnd): Promise<void>;
  replayConfig(back: BackEnd): Promise<void>;
  adopt(back: BackEnd): void;
  discard(back: BackEnd): void;
}

/** How often, at first and when the VMM has been told that there is none, ms. */
const LOOK_AGAIN_MS = 10;
const LOOK_AGAIN_LATER_MS = 100;

/** The first server: one that does not listen yet may come within the time that the VMM can wait. @throws as `attach` */
export async function attachFirst(servers: Searching, options: SearchOptions): Promise<Attached> {
  const since = performance.now();
  for (;;) {
    try {
      return await servers.attach(options.serverPath());
    } catch (error) {
      const mayCome = asDevstateError(error).code === 'DEVSTATE_E_CONNECT';
      if (servers.isClosed || !mayCome || performance.now() - since > options.holdMs) throw error;
    }
    await delay(LOOK_AGAIN_MS);
  }
}

/** Continues while the session looks for a server that takes the place of the one before. Never rejects. */
export async function attachAgain(servers: Searching, options: SearchOptions): Promise<void> {
  const since = performance.now();
  let said = '';
  while (servers.isSearching) {
    try {
      await replaceLost(servers, options.serverPath());
      const ms = (performance.now() - since).toFixed(1);
      options.log('info', `attached to the device server again after ${ms} ms`);
      return;
    } catch (error) {
      const { code, message } = asDevstateError(error);
      if (code !== 'DEVSTATE_E_CONNECT' && message !== said && !servers.isClosed)
        options.log('warn', message);
      said = message;
    }
    const isLate = performance.now() - since > options.holdMs;
    await delay(isLate ? LOOK_AGAIN_LATER_MS : LOOK_AGAIN_MS);
  }
}

async function replaceLost(servers: Searching, path: string): Promise<void> {
  const { back } = await servers.attach(path);
  try {
    await whileItAnswers(back, async () => {
      await servers.replay(back);
      await servers.replayConfig(back);
    });
  } catch (error) {
    servers.discard(back);
    throw error;
  }
  // Another one may have been adopted meanwhile.
  if (servers.back === undefined) servers.adopt(back);
  else servers.discard(back);
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
