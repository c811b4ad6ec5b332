// SPDX-License-Identifier: Apache-2.0
/** Work on many things in one thread: others have their turn of the event loop every few milliseconds. */

import { setImmediate as turn } from 'node:timers/promises';

/** Longest that others wait for the work on some of the things, ms. */
const TURN_MS = 5;

/** Calls `work` with each item and its place. @throws what `work` throws, at the first item for which it does */
export async function eachInTurns<Item>(
  items: Iterable<Item>,
  work: (item: Item, index: number) => void,
): Promise<void> {
  let index = 0;
  let end = performance.now() + TURN_MS;
  for (const item of items) {
    if (performance.now() > end) {
      await turn();
      end = performance.now() + TURN_MS;
    }
    work(item, index++);
  }
}
