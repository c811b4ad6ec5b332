// SPDX-License-Identifier: Apache-2.0
/** How much memory work takes, whatever of it is garbage by then: sampled whenever the work asks for more input. */

import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

/** On the heap, and in buffers beside it. */
function used(): number {
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

export interface Measured<T> {
  readonly result: T;
  /** Most bytes beyond those that were in use before. */
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
    peak = Math.max(peak, used() - before);
  };
  const start = performance.now();
  const result = await work(sample);
  sample();
  return { result, peak, ms: performance.now() - start };
}
