// SPDX-License-Identifier: Apache-2.0
/**
 * When the machine stood still, or was too busy: a thread that does nothing but wait for a few milliseconds again and again
 * notes each time that it woke up late. Whoever was late at that time need not have been so by itself.
 */

import { Worker, workerData } from 'node:worker_threads';

const WAIT_MS = 2;
/** Not noted: less than this late, ms. */
const PUNCTUAL_MS = 3;
/** Notes that are kept: the last ones. */
const NOTES = 65_536;

interface Shared {
  /** How many there were. */
  readonly count: Int32Array;
  /** The beginning and the end of each. */
  readonly notes: Float64Array;
}

/** Milliseconds of CLOCK_MONOTONIC, which all processes of a machine share. */
export function clock(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}

/** The thread of a test process. */
export class Metronome {
  readonly #shared: Shared = {
    count: new Int32Array(new SharedArrayBuffer(4)),
    notes: new Float64Array(new SharedArrayBuffer(16 * NOTES)),
  };

  constructor() {
    const options = { workerData: { metronome: this.#shared }, execArgv: [], env: {} };
    new Worker(new URL(import.meta.url), options).unref();
  }

  /** How much of the time from one moment to another the thread was late, ms. */
  lateWithin(from: number, to: number): number {
    const { count, notes } = this.#shared;
    let sum = 0;
    for (let i = Math.min(NOTES, Atomics.load(count, 0)) - 1; i >= 0; i--) {
      const [begin = 0, end = 0] = notes.subarray(2 * i, 2 * i + 2);
      sum += Math.max(0, Math.min(to, end) - Math.max(from, begin));
    }
    return sum;
  }
}

function keepTime({ count, notes }: Shared): void {
  const never = new Int32Array(new SharedArrayBuffer(4));
  for (;;) {
    const due = clock() + WAIT_MS;
    Atomics.wait(never, 0, 0, WAIT_MS);
    const now = clock();
    if (now - due < PUNCTUAL_MS) continue;
    notes.set([due, now], 2 * (Atomics.load(count, 0) % NOTES));
    Atomics.add(count, 0, 1);
  }
}

const { metronome } = (workerData ?? {}) as { metronome?: Shared };
if (metronome !== undefined) keepTime(metronome);
