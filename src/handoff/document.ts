// SPDX-License-Identifier: Apache-2.0
/** What all handoffs have in common of the documents that go over and around them. */

import { asDevstateError, DevstateError } from '../errors.js';
import * as z from '../zod.js';
import { HANDOFF_PHASES } from './phases.js';

/** Milliseconds, by phase. */
export const phaseTimes = z.partialRecord(z.enum(HANDOFF_PHASES), z.number());

/** How a handoff went, as its giver tells the manager that asked for it. A newer one may have more phases. */
export const handoffReport = z.object({
  ms: z.record(z.string(), z.number()),
  fds: z.number().int().nonnegative(),
  pid: z.number().int(),
  unconfirmed: z.boolean(),
});
export type HandoffReport = z.infer<typeof handoffReport>;

/** What a process says of itself that may be handed over, or be a successor. */
export const handoffStatus = z.object({
  /** How often it has been handed over. */
  generation: z.number().int(),
  /** False for a successor that has not taken over. */
  serving: z.boolean(),
  /** How long the last handoff kept the VMM waiting, ms. */
  pauseMs: z.number().exactOptional(),
  /** When that was over, in milliseconds of CLOCK_MONOTONIC. */
  startedAtMs: z.number().exactOptional(),
});
export type HandoffStatus = z.infer<typeof handoffStatus>;

/** @throws DEVSTATE_E_HANDOFF_BUNDLE with the first thing that is wrong */
export function parseHandoff<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
  what: string,
): z.infer<Schema> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  const message = `${what} is wrong at ${issue?.path.join('.') || 'its top'}: ${issue?.message}`;
  throw new DevstateError('DEVSTATE_E_HANDOFF_BUNDLE', message);
}

/** @throws DEVSTATE_E_HANDOFF_BUNDLE */
export function parseHandoffJson<Schema extends z.ZodType>(
  schema: Schema,
  text: string,
  what: string,
): z.infer<Schema> {
  try {
    return parseHandoff(schema, JSON.parse(text), what);
  } catch (error) {
    throw asDevstateError(error, 'DEVSTATE_E_HANDOFF_BUNDLE');
  }
}

/**
 * A successor has the socket paths of the process that it replaces, as that offers them: clients know it by them.
 * @param what the process is: `server`, `relay`
 * @throws DEVSTATE_E_HANDOFF
 */
export function requireSameOption(
  what: string,
  option: string,
  theirs: string | null,
  ours: string | null,
): void {
  if (theirs === ours) return;
  const message = `the ${what} to be replaced has ${option} ${theirs ?? '(none)'}, its successor was started with ${ours ?? 'none'}: start it with the same`;
  throw new DevstateError('DEVSTATE_E_HANDOFF', message);
}

/**
 * A successor is of the kind of what it replaces. What says no kind is for the offer's schema to refuse.
 * @param kind `device-server`, `relay`
 * @throws DEVSTATE_E_HANDOFF
 */
export function requireKind(kind: string, offer: unknown): void {
  const { data } = z.object({ what: z.string() }).safeParse(offer);
  if (data === undefined || data.what === kind) return;
  const message = `what is to be replaced is a ${data.what}, and its successor was started as a ${kind}: give the command line of the same kind`;
  throw new DevstateError('DEVSTATE_E_HANDOFF', message);
}

/** Milliseconds of CLOCK_MONOTONIC, which all processes of a machine share. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
