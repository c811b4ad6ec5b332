// SPDX-License-Identifier: Apache-2.0
/** DEVSTATE_NEXT_VMM as JSON: the steps that a manager asks for, and how far things are. */

import * as z from '../zod.js';
import { Errno, RequestError } from './errno.js';

const unsigned = z.number().int().nonnegative();

/** Longest that a device is kept for a VMM that does not come, ms. */
export const MAX_AWAIT_MS = 600_000;

export const nextVmmRequest = z.discriminatedUnion('action', [
  z.object({
    action: z.literal('await'),
    /** How long the next VMM may take to connect. */
    timeoutMs: z.number().positive().max(MAX_AWAIT_MS),
  }),
  z.object({ action: z.literal('promote') }),
  z.object({ action: z.literal('commit') }),
  z.object({ action: z.literal('roll-back') }),
]);
export type NextVmmRequest = z.infer<typeof nextVmmRequest>;

export const nextVmmStatus = z.object({
  phase: z.enum(['none', 'awaited', 'arrived', 'promoted']),
  /** Whether the VMM that had the device at `await` is connected; while nothing is under way, whether any is. */
  first: z.boolean(),
  /** Whether the next one is. */
  second: z.boolean(),
  /**
   * Whether the VMM that has the device takes its interrupts by INTx: it has an eventfd for them. By QEMU's CPR a signal of
   * INTx may be lost, and a level is not signalled twice.
   */
  intx: z.boolean(),
  /** How often the device has been reset since the server began, by whomever. */
  resets: unsigned,
  /** What the understudies of all successions so far have been spared the device. */
  absorbed: z.object({ resets: unsigned, configWrites: unsigned }),
});
export type NextVmmStatus = z.infer<typeof nextVmmStatus>;

/** @throws RequestError EINVAL */
export function parseNextVmmRequest(text: string): NextVmmRequest {
  const refuse = (why: string): never => {
    throw new RequestError(Errno.EINVAL, `DEVSTATE_NEXT_VMM: ${why}`);
  };
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return refuse('the request is no JSON');
  }
  const result = nextVmmRequest.safeParse(value);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  return refuse(`the request is wrong at ${issue?.path.join('.') || 'its top'}: ${issue?.message}`);
}
