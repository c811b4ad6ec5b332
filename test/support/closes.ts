// SPDX-License-Identifier: Apache-2.0
/** Open descriptors of this process without those given up: they are closed on other threads, as ranges are unmapped there. */

import { readdirSync } from 'node:fs';
import type { Test } from 'tap';
import { native } from '../../src/native/index.js';

const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** Waits, without a turn of the event loop, until what was given up is closed and unmapped. */
export function settleCloses(): void {
  for (let tries = 0; native.closing() + native.unmapping() > 0 && tries < 10_000; tries++)
    Atomics.wait(sleeper, 0, 0, 1);
}

/** Numbers of the open descriptors. Two calls compare: the directory's own is in both. */
export function openNumbers(): string[] {
  settleCloses();
  return readdirSync('/proc/self/fd').sort();
}

export function openFds(): number {
  return openNumbers().length;
}

/** Fails unless all files are closed but those with the numbers `before`. A closed connection is released in the next turns of the loop. */
export async function requireClosed(t: Test, before: readonly string[]): Promise<void> {
  for (let turn = 0; turn < 100 && openFds() > before.length; turn++)
    await new Promise((resolve) => setImmediate(resolve));
  t.same(openNumbers(), before, 'no file is left open');
}

/** Fails unless all files that `work` opened are closed when it has ended. */
export async function withoutLeak(t: Test, work: () => Promise<void>): Promise<void> {
  const before = openNumbers();
  await work();
  await requireClosed(t, before);
}
