// SPDX-License-Identifier: Apache-2.0
/**
 * Which process, and whether it runs still. A pid alone may be another's by now, or another's in another pid namespace.
 * What is not known for sure counts as running: the caller may take away what the process has.
 */

import { existsSync, readFileSync, statSync } from 'node:fs';
import { Errno, native, PosixPoll } from '../native/index.js';

export interface ProcessIdentity {
  readonly pid: number;
  /** When it was started, in clock ticks since boot (its low 32 bits); 0 when that is not known. */
  readonly startTime: number;
  /** Inode of the pid namespace that the pid is of (its low 32 bits); 0 when that is not known. */
  readonly namespace: number;
}

/** Where there are no namespaces. */
const ONLY_NAMESPACE = 1;
/** Fields of /proc/PID/stat behind the name, which may hold blanks and brackets itself. */
const START_TIME_FIELD = 19;

let self: ProcessIdentity | undefined;

export function thisProcess(): ProcessIdentity {
  self ??= { pid: process.pid, startTime: startTimeOf(process.pid) ?? 0, namespace: ownNamespace() };
  return self;
}

/** The process that has this pid now, which need not be one. */
export function processOf(pid: number): ProcessIdentity {
  return { pid, startTime: startTimeOf(pid) ?? 0, namespace: thisProcess().namespace };
}

/** Whether the end of that process can be noticed by this one. */
export function isKnown({ startTime, namespace }: ProcessIdentity): boolean {
  return startTime !== 0 && namespace !== 0 && namespace === thisProcess().namespace;
}

/** False when it has ended for sure. */
export function isRunning(identity: ProcessIdentity): boolean {
  if (!isKnown(identity)) return true;
  const pidfd = native.pidfdOpen(identity.pid);
  if (pidfd < 0) return pidfd !== -Errno.ESRCH;
  try {
    if (native.poll(pidfd, PosixPoll.in, 0) > 0) return false;
    // A process that /proc hides from this user may be the one.
    return (startTimeOf(identity.pid) ?? identity.startTime) === identity.startTime;
  } finally {
    native.close(pidfd);
  }
}

function startTimeOf(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return Number(BigInt.asIntN(32, BigInt(fields[START_TIME_FIELD] ?? '0')));
  } catch {
    return undefined;
  }
}

function ownNamespace(): number {
  try {
    return statSync('/proc/self/ns/pid').ino | 0;
  } catch {
    // A kernel without pid namespaces has one, as long as it is only that file that is missing.
    return existsSync('/proc/self/stat') ? ONLY_NAMESPACE : 0;
  }
}
