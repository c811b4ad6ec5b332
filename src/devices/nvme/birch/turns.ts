// SPDX-License-Identifier: Apache-2.0
import { QUEUE_SLOTS } from './layout.js';

/** Submission queues that may have entries, in the order of their turns: round robin, but for the admin queue, which is always next. */
export class Turns {
  readonly #order: number[] = [];
  readonly #waiting = new Uint8Array(QUEUE_SLOTS);

  /** The queue whose turn it is; undefined if no queue waits for one. */
  get next(): number | undefined {
    return this.#order[0];
  }

  /** Gives a queue a turn after those that wait for theirs, unless it is one of them. */
  offer(sqid: number): void {
    if (this.#waiting[sqid] === 1) return;
    this.#waiting[sqid] = 1;
    if (sqid === 0) this.#order.unshift(sqid);
    else this.#order.push(sqid);
  }

  /** Ends the turn of the queue whose turn it is. */
  take(): void {
    const sqid = this.#order.shift();
    if (sqid !== undefined) this.#waiting[sqid] = 0;
  }

  clear(): void {
    this.#order.length = 0;
    this.#waiting.fill(0);
  }
}
