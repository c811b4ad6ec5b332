// SPDX-License-Identifier: Apache-2.0
/**
 * Reads of configuration space in a random order, and how well a list of reads that arrived somewhere shows that they
 * were these. Pure.
 *
 * Others read at the same time: the guest, other managers. So the sequence may be spread over what arrived, and the more
 * arrived beside it, the less it proves: of `n` reads there are C(n, k) ways to choose `k`, and each of them is the
 * sequence by chance once in A^k, where A is the number of different reads. The evidence is what remains, in bits:
 * k·log2(A) − log2(C(n, k)).
 */

import { randomInt } from 'node:crypto';
import type { ConfigRead } from '../../wire/index.js';

/**
 * Reads that have no effect on any PCI device and that QEMU passes on to the device's server, whole, whatever the properties
 * of its device are: COMMAND, STATUS, revision, cache line size, latency timer, header type, BIST. It answers BARs itself,
 * and identity and class where it is given other ones (x-pci-vendor-id and its like).
 */
const READS: readonly ConfigRead[] = [
  ...[0x04, 0x05, 0x06, 0x07, 0x08, 0x0c, 0x0d, 0x0e, 0x0f].map((offset) => ({ offset, length: 1 })),
  ...[0x04, 0x06, 0x08, 0x0c, 0x0e].map((offset) => ({ offset, length: 2 })),
  ...[0x04, 0x08, 0x0c].map((offset) => ({ offset, length: 4 })),
];

/** Reads of one challenge: 130 bits. */
const CHALLENGE_LENGTH = 32;
/** Evidence that counts as proof, bits. */
const PROOF_BITS = 64;

/** A new random sequence. */
export function createChallenge(random: (bound: number) => number = randomInt): ConfigRead[] {
  return Array.from({ length: CHALLENGE_LENGTH }, () => READS[random(READS.length)]!);
}

export type Verdict =
  /** Nothing but the challenge explains what arrived. */
  | 'proven'
  /** The challenge did not arrive. */
  | 'absent'
  /** It may have arrived, among so many other reads that it proves nothing. */
  | 'unclear';

/** What `seen`, the reads that arrived while `challenge` was made, in order, say about it. */
export function judge(challenge: readonly ConfigRead[], seen: readonly ConfigRead[]): Verdict {
  let found = 0;
  for (const read of seen) {
    const wanted = challenge[found];
    if (wanted === undefined) break;
    if (read.offset === wanted.offset && read.length === wanted.length) found++;
  }
  if (found < challenge.length) return 'absent';
  const bits = challenge.length * Math.log2(READS.length) - log2Choose(seen.length, challenge.length);
  return bits >= PROOF_BITS ? 'proven' : 'unclear';
}

/** log2 of the number of ways to choose `k` of `n`. */
function log2Choose(n: number, k: number): number {
  let sum = 0;
  for (let i = 1; i <= k; i++) sum += Math.log2((n - k + i) / i);
  return sum;
}
