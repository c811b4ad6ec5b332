// SPDX-License-Identifier: Apache-2.0
/** Open descriptors of this process without those given up: they are closed on other threads, as ranges are unmapped there. */

import { readdirSync } from 'node:fs';
import { native } from '../../src/native/index.js';

const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** Waits, without a turn of the event loop, until what was given up is closed and unmapped. */
export function settleCloses(): void {
  for (let tries = 0; native.closing() + native.unmapping() > 0 && tries < 10_000; tries++)
    Atomics.wait(sleeper, 0, 0, 1);
}

/** Numbers of the open descriptors. */
export function openNumbers(): string[] {
  settleCloses();
  return readdirSync('/proc/self/fd');
}

export function openFds(): number {
  return openNumbers().length;
}
