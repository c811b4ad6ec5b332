// SPDX-License-Identifier: Apache-2.0
/** Both ends of a handoff in one process, of nothing: the first run of any code is slow, and here nobody waits for it. */

import { socketPair } from '../transport/index.js';
import { give } from './give.js';
import { receive } from './receive.js';

/** How often to go through what is to be fast afterwards: the first time costs ten times the third. */
export const REHEARSALS = 3;

export async function rehearseHandoff(): Promise<void> {
  for (let round = 0; round < REHEARSALS; round++) {
    const [one, other] = socketPair();
    const giver = {
      offer: null,
      freeze: async () => ({ entries: [], document: null }),
      thaw: async () => {},
    };
    const adopted = { start: () => {}, abandon: () => {} };
    await Promise.all([
      give(one, giver),
      receive(other, { prepare: () => null, adopt: async () => adopted }),
    ]);
  }
}
