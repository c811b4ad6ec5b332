// SPDX-License-Identifier: Apache-2.0

import { setImmediate } from 'node:timers/promises';
import { isRunning, processOf } from '../../src/handoff/index.js';

/** Kills a process. Settles when it has ended and this process has had the chance to notice what that closed. */
export async function kill(pid: number): Promise<void> {
  const victim = processOf(pid);
  process.kill(pid, 'SIGKILL');
  while (isRunning(victim)) await setImmediate();
  // The turn begins with what has arrived, the next one follows it.
  for (let turn = 0; turn < 2; turn++) await setImmediate();
}
