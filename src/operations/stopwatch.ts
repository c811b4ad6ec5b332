// SPDX-License-Identifier: Apache-2.0
/** How long something takes. */

/** Milliseconds since it was made, or since the last lap. */
export class Stopwatch {
  readonly started = performance.now();
  #lap = this.started;

  get elapsed(): number {
    return performance.now() - this.started;
  }

  lap(): number {
    const now = performance.now();
    const ms = now - this.#lap;
    this.#lap = now;
    return ms;
  }
}

/** How long work took that has begun just now, ms. */
export async function timed(work: Promise<unknown>): Promise<number> {
  const stopwatch = new Stopwatch();
  await work;
  return stopwatch.elapsed;
}
