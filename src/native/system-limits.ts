// SPDX-License-Identifier: Apache-2.0
/** What the system lets this process have, asked when the module is loaded: what peers are offered has to be had. */

import { readFileSync } from 'node:fs';
import { native } from './native.js';

/** Descriptors for the process itself: libuv, standard streams, listening sockets, image, journal, managers. */
const OWN_FDS = 48;
/** Descriptors below which no command works. */
export const MIN_FDS = 80;

export interface SystemLimits {
  /** Open descriptors (RLIMIT_NOFILE, soft; Node.js has raised it as far as it may). */
  readonly fds: number;
  /** Bytes that may be locked in memory (RLIMIT_MEMLOCK); Infinity without a limit. */
  readonly lockedBytes: number;
  /** Bytes of address space (RLIMIT_AS); Infinity without a limit. */
  readonly addressSpace: number;
  /** Ranges of peers' memory that can be mapped at once (vm.max_map_count). */
  readonly ranges: number;
}

function softLimit(text: string, name: string): number {
  const value = new RegExp(`^${name}\\s+(\\S+)`, 'm').exec(text)?.[1];
  if (value === undefined || value === 'unlimited') return Number.POSITIVE_INFINITY;
  return Number(value);
}

function readLimits(): SystemLimits {
  let text = '';
  try {
    text = readFileSync('/proc/self/limits', 'latin1');
  } catch {
    // Without /proc there is no telling; each call still says when it cannot have more.
  }
  return {
    fds: softLimit(text, 'Max open files'),
    lockedBytes: softLimit(text, 'Max locked memory'),
    addressSpace: softLimit(text, 'Max address space'),
    ranges: native.maxRanges(),
  };
}

let known: SystemLimits | undefined;

export function systemLimits(): SystemLimits {
  known ??= readLimits();
  return known;
}

/** Descriptors that peers can make this process hold, all of them together. */
export function peerFds(): number {
  return Math.max(0, systemLimits().fds - OWN_FDS);
}
