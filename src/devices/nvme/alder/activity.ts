// SPDX-License-Identifier: Apache-2.0
/** Counts what is under way, so that others can wait until nothing is. */

export class Activity {
  #count = 0;
  #waiting: (() => void)[] = [];

  get count(): number {
    return this.#count;
  }

  begin(): void {
    this.#count++;
  }

  end(): void {
    if (--this.#count > 0) return;
    while (this.#count === 0) {
      const next = this.#waiting.shift();
      if (next === undefined) return;
      next();
    }
  }

  /** Calls back once nothing is under way: at once if that is now. Callbacks run in order, each only if still nothing is. */
  whenIdle(callback: () => void): void {
    this.#waiting.push(callback);
    if (this.#count === 0) {
      this.#count++;
      this.end();
    }
  }
}
