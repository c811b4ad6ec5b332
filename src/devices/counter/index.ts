// SPDX-License-Identifier: Apache-2.0
/** A counter whose commands are not idempotent. */

export { CounterDevice } from './counter-device.js';
export { counterDescription } from './describe.js';
export * from './registers.js';
