// SPDX-License-Identifier: Apache-2.0
/** The native addon and the names that go with it. */

export * from './binding.js';
export * from './errno.js';
export { native } from './native.js';
export { MIN_FDS, peerFds, type SystemLimits, systemLimits } from './system-limits.js';
