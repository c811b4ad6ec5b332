// SPDX-License-Identifier: Apache-2.0
/** Both ends of a handoff in one process, of nothing: the first run of any code is slow, and here no one waits for it. */

import { socketPair } from '../transport/index.js';
import { give } from './give.js';
import { receive } from './receive.js';

/** How often to go through what is to be fast afterwards: the first time costs ten times the third. */
export const REHEARSALS = 3;

/** A document with a value of each kind. */
const document = Array.from({ length: 50 }, (_, index) => ({
  address: index * 2 ** 32,
  size: 4096,
  flags: index,
  name: `dma:${index}`,
  bytes: new Uint8Array(index),
  file: null,
  masked: [true, false, 1.5],
}));

export async function rehearseHandoff(): Promise<void> {
  for (let round = 0; round < REHEARSALS; round++) {
    const [one, other] = socketPair();
    const giver = {
      offer: {},
      freeze: async () => ({ entries: [], document }),
      thaw: async () => {},
    };
    const adopted = { start: () => {}, abandon: () => {} };
    await Promise.all([
      give(one, giver),
      receive(other, { prepare: () => null, adopt: async () => adopted }),
    ]);
  }
}
