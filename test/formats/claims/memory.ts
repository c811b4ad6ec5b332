// SPDX-License-Identifier: Apache-2.0
/** How much memory work holds: sampled whenever the work asks for more input. */

import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

/** Below this no one asks how much of it is garbage, bytes. */
const COLLECT_ABOVE = 32 * 1024 * 1024;

/** On the heap, and in buffers beside it. */
function used(): number {
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

export interface Measured<T> {
  readonly result: T;
  /** Most bytes held beyond those that were in use before; 0 if it was never so much as to be looked at. */
  readonly peak: number;
  readonly ms: number;
}

/**
 * @param work calls `sample` as often as it can
 * @param exact collect garbage first, which takes longer than most work
 */
export async function measured<T>(
  work: (sample: () => void) => Promise<T>,
  exact = true,
): Promise<Measured<T>> {
  if (exact) collect();
  const before = used();
  let peak = 0;
  const sample = (): void => {
    const now = used() - before;
    // Garbage is freed when it suits the engine, and much of it is not what the work holds.
    if (now <= Math.max(peak, COLLECT_ABOVE)) return;
    collect();
    peak = Math.max(peak, Math.min(now, used() - before));
  };
  const start = performance.now();
  const result = await work(sample);
  sample();
  return { result, peak, ms: performance.now() - start };
}
