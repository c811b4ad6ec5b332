// SPDX-License-Identifier: Apache-2.0
/** One attempt to migrate a VM: what both ends agree on before anything is moved. */

import * as z from '../zod.js';
import { generationSchema, nameSchema, type Token, tokenSchema } from './token.js';

export const attemptSchema = z
  .strictObject({
    vm: nameSchema,
    /** Of this attempt alone: no earlier attempt and no earlier token of the VM has it or a higher one. */
    generation: generationSchema,
    source: nameSchema,
    destination: nameSchema,
    /** The token as it is while the source owns the VM. Without a witness, what it would be. */
    from: tokenSchema,
    /** Whether a witness keeps the token. Both ends use the same one. */
    witness: z.boolean(),
  })
  .refine(({ source, destination }) => source !== destination, 'source and destination are one host')
  .refine(
    ({ vm, generation, source, from }) =>
      from.vm === vm && from.owner === source && from.generation < generation,
    'the token of before is not that of the source',
  );
export type Attempt = z.infer<typeof attemptSchema>;

/** The token that gives the VM to one of the two ends in this attempt. */
export function tokenFor(attempt: Attempt, owner: string): Token {
  return { vm: attempt.vm, generation: attempt.generation, owner };
}

/**
 * The token says that `owner` has the VM since this attempt, or since a decision after it. A token of before the attempt
 * says nothing about it.
 */
export function isOwnedSince(attempt: Attempt, token: Token, owner: string): boolean {
  return token.vm === attempt.vm && token.owner === owner && token.generation >= attempt.generation;
}

/** The generation of the next attempt: above all that this host has journalled or seen as a token of the VM. */
export function nextGeneration(...seen: readonly number[]): number {
  return Math.max(0, ...seen) + 1;
}

/** What carries an attempt says of itself that it is of this one. */
export function isOfItsAttempt(of: { vm: string; generation: number; attempt: Attempt }): boolean {
  return of.vm === of.attempt.vm && of.generation === of.attempt.generation;
}
export const OF_ITS_ATTEMPT = 'the VM or the generation is not that of the attempt';
