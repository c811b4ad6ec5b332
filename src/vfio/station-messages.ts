// SPDX-License-Identifier: Apache-2.0
/** What a station is asked, and says: JSON in REQUEST and RESPONSE messages (docs/handoff.md). */

import { z } from 'zod';
import { asDevstateError, DevstateError, ERROR_CODES, type ErrorCode } from '../errors.js';
import {
  Channel,
  decodeJson,
  encodeJson,
  HandoffMessage,
  handoffReport,
  parseHandoff,
} from '../handoff/index.js';
import { connect } from '../transport/index.js';

export const stationRequest = z.discriminatedUnion('command', [
  z.object({ command: z.literal('status') }),
  z.object({
    command: z.literal('give'),
    /** Socket of the station that is to have the devices. */
    to: z.string().min(1),
    /** Longest that a phase of the handoff may take, ms. */
    timeoutMs: z.number().positive(),
  }),
]);
export type StationRequest = z.infer<typeof stationRequest>;

export const stationStatus = z.object({
  pid: z.number().int(),
  uid: z.number().int(),
  /** It lends: it keeps the files of devices that another process has. */
  lends: z.boolean(),
  /** It may operate the devices; false without any, too. */
  held: z.boolean(),
  /** Counts how often the devices have changed hands; null without any. */
  generation: z.number().int().nullable(),
  /** The process that has the devices. */
  owner: z.object({ pid: z.number().int(), running: z.boolean() }).nullable(),
  space: z.enum(['container', 'iommufd']).nullable(),
  groups: z.array(z.string()),
  devices: z.array(z.string()),
  /** DMA mappings, and bytes locked for them; of a lender: those it had. */
  dmaMappings: z.number().int(),
  lockedBytes: z.number(),
});
export type StationStatus = z.infer<typeof stationStatus>;

const failure = z.object({ error: z.object({ code: z.string(), message: z.string() }) });

export type StationResponse = { status: StationStatus } | { report: z.infer<typeof handoffReport> };

export function encodeFailure(error: unknown): Uint8Array {
  const { code, message } = asDevstateError(error);
  return encodeJson({ error: { code, message } });
}

/** Asks the station that listens at `path`. @throws what it says, under its code; DEVSTATE_E_CONNECT */
async function ask<Schema extends z.ZodType>(
  path: string,
  request: StationRequest,
  schema: Schema,
): Promise<z.infer<Schema>> {
  // Nothing of ours goes there but the question, so its user is no matter.
  const channel = new Channel(await connect(path), { peers: 'any' });
  try {
    await channel.send(HandoffMessage.REQUEST, encodeJson(request));
    const { payload } = await channel.expect(HandoffMessage.RESPONSE);
    const answer = decodeJson(payload);
    const failed = failure.safeParse(answer);
    if (failed.success) throw remoteError(failed.data.error);
    return parseHandoff(schema, answer, `the answer of ${path}`);
  } finally {
    channel.end();
  }
}

function remoteError({ code, message }: { code: string; message: string }): DevstateError {
  const known = Object.hasOwn(ERROR_CODES, code) ? (code as ErrorCode) : 'DEVSTATE_E_HANDOFF';
  return new DevstateError(known, message);
}

export async function askStatus(path: string): Promise<StationStatus> {
  return (await ask(path, { command: 'status' }, z.object({ status: stationStatus }))).status;
}

/** Has the station at `from` give its devices to the one at `to`. @throws HandoffError's words when it goes on */
export async function askToGive(
  from: string,
  to: string,
  timeoutMs: number,
): Promise<z.infer<typeof handoffReport>> {
  const request = { command: 'give', to, timeoutMs } as const;
  return (await ask(from, request, z.object({ report: handoffReport }))).report;
}
