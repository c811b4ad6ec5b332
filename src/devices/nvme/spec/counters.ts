// SPDX-License-Identifier: Apache-2.0
/**
 * Counters of a controller's life. The specification gives them 64 or 128 bits; a saved state holds integers up to
 * 2^53 - 1, so a counter must never pass that: a state that has been loaded can always be saved again.
 */

/** The largest value that a state can hold. */
export const COUNTER_MAX = Number.MAX_SAFE_INTEGER;

/** A SMART counter plus `amount`; at its end it stays there, because these must not begin again (NVMe 1.4, 5.14.1.2). */
export function counted(value: number, amount = 1): number {
  return Math.min(value + amount, COUNTER_MAX);
}

/** The Error Count after `count`. It begins again at 1, as 0 marks an unused entry (NVMe 1.4, 5.14.1.1). */
export function nextErrorCount(count: number): number {
  return count >= COUNTER_MAX ? 1 : count + 1;
}

/** Page aligned addresses of a state end here. One above it, which no guest's memory has, is saved as this one. */
const ADDRESS_MAX = 2 ** 53 - 4096;

/** A register's address as a state can hold it. */
export function savedAddress(address: number): number {
  return Math.min(address, ADDRESS_MAX);
}
