// SPDX-License-Identifier: Apache-2.0
/** What the engine may do: bits, and the combinations of them that occur. */

export const May = {
  /** Take entries from submission queues. */
  FETCH: 1,
  /** Start commands that were fetched. */
  START: 2,
  /** Write completions to guest memory. */
  POST: 4,
  /** Keep completions that cannot be written; else they are dropped. */
  KEEP: 8,
} as const;

export const Mode = {
  /** Disabled, failed, or about to be: what ends does so in silence. */
  SILENT: 0,
  /** Quiesced: guest memory is not touched. */
  HELD: May.KEEP,
  /** What is under way ends and is reported, nothing begins: on the way to `HELD`, and after a shutdown. */
  SETTLING: May.KEEP | May.POST,
  /** What was fetched is carried out, nothing more is fetched: a shutdown. */
  DRAINING: May.KEEP | May.POST | May.START,
  RUNNING: May.KEEP | May.POST | May.START | May.FETCH,
} as const;
export type Mode = (typeof Mode)[keyof typeof Mode];
