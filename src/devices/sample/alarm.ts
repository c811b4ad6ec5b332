// SPDX-License-Identifier: Apache-2.0
/** Rings once, when a second of the wall clock has come. */

/** What a timer of Node takes; a longer wait is made of several. */
const MAX_DELAY_MS = 2 ** 31 - 1;

/** The present second since 1970, as C's `time` has it. */
export function presentSecond(): bigint {
  return BigInt(Math.floor(Date.now() / 1000));
}

export class Alarm {
  readonly #ring: () => void;
  #timer: NodeJS.Timeout | undefined;

  constructor(ring: () => void) {
    this.#ring = ring;
  }

  /** Rings after as many whole seconds as `second` is ahead; in the next turn if it is not. Replaces what was set. */
  set(second: bigint): void {
    const wait = (second - presentSecond()) * 1000n;
    const isLast = wait <= MAX_DELAY_MS;
    const delay = isLast ? Math.max(Number(wait), 0) : MAX_DELAY_MS;
    this.clear();
    this.#timer = setTimeout(() => (isLast ? this.#ring() : this.set(second)), delay);
    // A process that serves no more does not wait for it.
    this.#timer.unref();
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }
}
