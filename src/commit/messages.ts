// SPDX-License-Identifier: Apache-2.0
/**
 * What the two ends say to each other. Each message is of one attempt, and may come twice, late, or not at all: it says how
 * things stand, so that a repetition does no harm, and the answer to it is how things stand at the other end.
 */

import * as z from '../zod.js';
import { attemptSchema, isOfItsAttempt, OF_ITS_ATTEMPT } from './attempt.js';
import { generationSchema, nameSchema } from './token.js';

const of = { vm: nameSchema, generation: generationSchema };

/**
 * What may give the VM back to the source, besides the destination's own word: the witness's token, or nothing.
 * Without a witness it is `none` from the start.
 */
export const arbiterSchema = z.enum(['witness', 'none']);
export type Arbiter = z.infer<typeof arbiterSchema>;

/** From the source to the destination. */
export const sourceMessageSchema = z.discriminatedUnion('type', [
  /** An attempt begins. */
  z
    .strictObject({ type: z.literal('offer'), ...of, attempt: attemptSchema })
    .refine(isOfItsAttempt, OF_ITS_ATTEMPT),
  /**
   * The source does not run the VM until it knows that the destination does not (rule 2). `witness`: or until it has the
   * token, so the destination must have it to run. `none`: the source does not ask the witness any more.
   */
  z.strictObject({ type: z.literal('grant'), ...of, arbiter: arbiterSchema }),
  /** The source has given up this attempt, and runs the VM or has lost it. */
  z.strictObject({ type: z.literal('withdrawn'), ...of }),
  /** The source knows that the destination has the VM, and asks nothing any more. */
  z.strictObject({ type: z.literal('done'), ...of }),
]);
export type SourceMessage = z.infer<typeof sourceMessageSchema>;

/** From the destination to the source. */
export const destinationMessageSchema = z.discriminatedUnion('type', [
  /** The attempt is known; the state may come. */
  z.strictObject({ type: z.literal('ready'), ...of }),
  /** State loaded, view replayed, everything answered. Only the grant is missing. */
  z.strictObject({ type: z.literal('landed'), ...of }),
  /** The grant is durable, but the witness does not answer: may the VM run without the token? */
  z.strictObject({ type: z.literal('waiting'), ...of }),
  /** The VM runs here, or has run here since the grant. */
  z.strictObject({ type: z.literal('runs'), ...of }),
  /**
   * The offer is not accepted now; it may be when it comes again. It says nothing of a grant: that needs a word which is as
   * true after a restart, and this end can write nothing.
   */
  z.strictObject({ type: z.literal('declined'), ...of }),
  /** The VM has not run here, and never will in this attempt. */
  z.strictObject({ type: z.literal('gaveUp'), ...of }),
  /** The VM is gone here and does not run any more. It may have run since the grant. */
  z.strictObject({ type: z.literal('gone'), ...of }),
]);
export type DestinationMessage = z.infer<typeof destinationMessageSchema>;
