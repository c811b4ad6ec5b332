// SPDX-License-Identifier: Apache-2.0
/** What a station is asked, and answers (docs/handoff.md). */

import { Asker, Channel, MAX_REQUEST_MESSAGE } from '../documents/index.js';
import { type HandoffReport, handoffReport } from '../handoff/index.js';
import { connect } from '../transport/index.js';
import * as z from '../zod.js';

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

/** Asks the station that listens at `path`. @throws what it says, under its code; DEVSTATE_E_CONNECT */
async function ask<Schema extends z.ZodType>(
  path: string,
  request: StationRequest,
  schema: Schema,
): Promise<z.infer<Schema>> {
  // Nothing of ours goes there but the question, so its user is no matter.
  const options = { peers: 'any', maxMessageLength: MAX_REQUEST_MESSAGE } as const;
  const station = new Asker(new Channel(await connect(path), options), `the station at ${path}`);
  try {
    return await station.ask(request, schema);
  } finally {
    station.close();
  }
}

export function askStatus(path: string): Promise<StationStatus> {
  return ask(path, { command: 'status' }, stationStatus);
}

/** Has the station at `from` give its devices to the one at `to`. @throws HandoffError's words when it continues */
export function askToGive(from: string, to: string, timeoutMs: number): Promise<HandoffReport> {
  return ask(from, { command: 'give', to, timeoutMs }, handoffReport);
}
