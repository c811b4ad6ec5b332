// SPDX-License-Identifier: Apache-2.0
/**
 * The run token of a VM, which a witness keeps: who owns the VM. It changes by a compare-and-set, and each change raises the
 * generation. So one value is there at most once, and a request that comes late compares with a value that is gone for good.
 */

import * as z from '../zod.js';

/** Longest name of a VM or a host. */
const MAX_NAME = 255;

export const nameSchema = z.string().min(1).max(MAX_NAME);
export const generationSchema = z.int().min(0);

export const tokenSchema = z.strictObject({
  vm: nameSchema,
  /** Raised by each change of the token, and used up by each attempt to migrate the VM. */
  generation: generationSchema,
  /** The host that may run the VM. */
  owner: nameSchema,
});
export type Token = z.infer<typeof tokenSchema>;

export function sameToken(a: Token, b: Token): boolean {
  return a.vm === b.vm && a.generation === b.generation && a.owner === b.owner;
}

/** What a witness answers to a compare-and-set. Only the first two are answers of the witness itself. */
export type WitnessAnswer =
  | { readonly type: 'set' }
  /** The token was another one than expected: this one. */
  | { readonly type: 'conflict'; readonly current: Token }
  /** It may have been set or not. It grants nothing (rule 5). */
  | { readonly type: 'unreachable' };
