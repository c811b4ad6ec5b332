// SPDX-License-Identifier: Apache-2.0
/** Long work in one thread: others have their turn of the event loop every few milliseconds. */

import { setImmediate } from 'node:timers/promises';

/** Longest that others wait for one piece of work, ms. */
export const TURN_MS = 5;

/** The turns of one piece of work; the first begins at once. */
export class Turns {
  #end = performance.now() + TURN_MS;

  /** Whether the time of this turn is used up. */
  get isOver(): boolean {
    return performance.now() > this.#end;
  }

  /** Others have a turn, then this work has its next one. */
  async next(): Promise<void> {
    await setImmediate();
    this.#end = performance.now() + TURN_MS;
  }
}

/** Calls `work` with each item and its place. @throws what `work` throws, at the first item for which it does */
export async function eachInTurns<Item>(
  items: Iterable<Item>,
  work: (item: Item, index: number) => void,
): Promise<void> {
  const turns = new Turns();
  let index = 0;
  for (const item of items) {
    if (turns.isOver) await turns.next();
    work(item, index++);
  }
}
