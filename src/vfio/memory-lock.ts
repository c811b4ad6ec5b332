// SPDX-License-Identifier: Apache-2.0
/**
 * How much memory a process may lock. What devices reach is pinned, and counted as locked by the process that mapped it,
 * or that took the mapping over: beyond RLIMIT_MEMLOCK the kernel refuses, so it is asked before.
 */

import { readFileSync } from 'node:fs';
import { DevstateError } from '../errors.js';

export interface MemoryLock {
  /** RLIMIT_MEMLOCK, bytes; Infinity for none, and for a process with CAP_IPC_LOCK. */
  readonly limit: number;
  /** Bytes that the process has locked. */
  readonly locked: number;
}

const CAP_IPC_LOCK = 14n;
/** Bytes of `kB` in /proc. */
const KILOBYTE = 1024;

/** Memory that this process has locked, and may lock. */
export function memoryLock(
  status = readFileSync('/proc/self/status', 'latin1'),
  limits = readFileSync('/proc/self/limits', 'latin1'),
): MemoryLock {
  const field = (name: string): string => new RegExp(`^${name}:\\s*(\\S+)`, 'm').exec(status)?.[1] ?? '0';
  const capabilities = BigInt(`0x${field('CapEff')}`);
  const soft = /^Max locked memory\s+(\S+)/m.exec(limits)?.[1] ?? '0';
  const exempt = ((capabilities >> CAP_IPC_LOCK) & 1n) === 1n || soft === 'unlimited';
  return {
    limit: exempt ? Number.POSITIVE_INFINITY : Number(soft),
    locked: Number(field('VmLck')) * KILOBYTE,
  };
}

/** @throws DEVSTATE_E_VFIO_MEMLOCK when this process may not lock as many bytes more */
export function requireMemoryLock(bytes: number, { limit, locked } = memoryLock()): void {
  if (locked + bytes <= limit) return;
  const more = locked === 0 ? '' : ` besides the ${locked} that it has locked`;
  throw new DevstateError(
    'DEVSTATE_E_VFIO_MEMLOCK',
    `this process (${process.pid}) would have ${bytes} bytes locked for DMA${more}, and RLIMIT_MEMLOCK allows ${limit}: ` +
      `raise it to ${locked + bytes} at least (ulimit -l, LimitMEMLOCK=), or give the process CAP_IPC_LOCK`,
  );
}
