// SPDX-License-Identifier: Apache-2.0
/** Log lines: their type, and the limit on those that a peer can cause over and over. */

export {
  type Log,
  type LogLevel,
  limitRepeats,
  type RepeatLimit,
  summarizeRepeats,
  withoutLimit,
} from './limit-repeats.js';
