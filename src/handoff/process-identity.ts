// SPDX-License-Identifier: Apache-2.0
/** Which process, and whether it runs still: a pid alone may be another's by now. */

import { readFileSync } from 'node:fs';

export interface ProcessIdentity {
  readonly pid: number;
  /** When it was started, in clock ticks since boot (its low 32 bits). */
  readonly startTime: number;
}

/** Fields of /proc/PID/stat behind the name, which may hold blanks and brackets itself. */
const STATE_FIELD = 0;
const START_TIME_FIELD = 19;

let self: ProcessIdentity | undefined;

export function thisProcess(): ProcessIdentity {
  self ??= processOf(process.pid) ?? { pid: process.pid, startTime: 0 };
  return self;
}

/** The process that has this pid now; undefined when there is none, or nothing but its exit code is left of it. */
export function processOf(pid: number): ProcessIdentity | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch {
    return undefined;
  }
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  if (/^[ZX]/.test(fields[STATE_FIELD] ?? '')) return undefined;
  return { pid, startTime: Number(BigInt.asIntN(32, BigInt(fields[START_TIME_FIELD] ?? '0'))) };
}

export function isRunning({ pid, startTime }: ProcessIdentity): boolean {
  return processOf(pid)?.startTime === startTime;
}
