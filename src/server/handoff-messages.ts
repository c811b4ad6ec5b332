// SPDX-License-Identifier: Apache-2.0
/** What goes over between a server, its successor and the manager that has one replaced by the other. */

import { documentBytes } from '../documents/index.js';
import { phaseTimes } from '../handoff/index.js';
import { SocketName } from '../succession/index.js';
import { capabilitiesSchema } from '../wire/index.js';
import * as z from '../zod.js';
import { backlogSchema } from './backlog-bundle.js';
import { MAX_NOTE_LENGTH } from './capabilities.js';

const unsigned = z.number().int().nonnegative();

const format = z.object({ uuid: z.string(), major: unsigned, minor: unsigned });

/** What a manager asks a server for (DEVSTATE_HANDOFF, JSON): hand over to the process that listens at `socket`. */
export const handoffRequest = z.object({
  socket: z.string(),
  format,
  timeouts: phaseTimes.exactOptional(),
});
export type HandoffRequest = z.infer<typeof handoffRequest>;

/** What the successor receives first. Paths are absolute, as far as the giver has them. */
export const handoffOffer = z.object({
  what: z.literal('device-server'),
  /** 1 for the first successor. */
  generation: unsigned,
  format,
  socketPath: z.string(),
  migrationSocketPath: z.string().nullable(),
});
export type HandoffOffer = z.infer<typeof handoffOffer>;

/** The document of a bundle: the VMM's connection, if there is one, and what the device makes of itself. */
export const serverDocument = z.object({
  vmm: z
    .object({
      negotiated: z.boolean(),
      /** What was agreed on with the VMM. */
      peer: capabilitiesSchema,
      dma: z
        .object({
          maxTransfer: unsigned,
          width: z.union([z.literal(32), z.literal(64)]).nullable(),
          twin: z.boolean(),
        })
        .nullable(),
      /** Messages that were received and not carried out. */
      backlog: backlogSchema,
    })
    .nullable(),
  /** Clients that wait for the VMM's place. */
  waiting: unsigned,
  /** What a manager has left. */
  note: documentBytes(MAX_NOTE_LENGTH),
  /** When the last command of the VMM had been carried out, in milliseconds of CLOCK_MONOTONIC. */
  heldAtMs: z.number(),
  device: z.unknown(),
});
export type ServerDocument = z.infer<typeof serverDocument>;

/** Names of fds in the bundle. */
export const FdName = {
  ...SocketName,
  twin: 'vmm:twin',
} as const;
