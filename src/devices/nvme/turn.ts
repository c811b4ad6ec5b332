// SPDX-License-Identifier: Apache-2.0
/**
 * How long commands are taken and started before other work of the process has its turn. A guest decides how many queues it
 * rings at once and how long its transfers are, so neither a count for each queue nor one for all of them is a bound in time.
 */

import { TURN_MS } from '../../turns.js';

/** Of all queues together. */
export class Turn {
  #end = 0;

  /** Whether the time of this turn is used up: continue in the next one, by `setImmediate`. */
  get isOver(): boolean {
    const now = performance.now();
    if (this.#end !== 0) return now > this.#end;
    this.#end = now + TURN_MS;
    setImmediate(this.#next);
    return false;
  }

  readonly #next = (): void => {
    this.#end = 0;
  };
}
