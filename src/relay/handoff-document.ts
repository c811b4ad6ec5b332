// SPDX-License-Identifier: Apache-2.0
/** What goes over between two relays: the offer, and the document that says what the fds are for. */

import { documentBytes } from '../documents/index.js';
import { phaseTimes, rangeTable } from '../handoff/index.js';
import { SocketName } from '../succession/index.js';
import { capabilitiesSchema } from '../wire/index.js';
import * as z from '../zod.js';

const unsigned = z.number().int().nonnegative();
const bytes = documentBytes();

/** A relay is asked to hand over to the one that listens at `socket`. */
export const handOverRequest = z.object({ socket: z.string().min(1), timeouts: phaseTimes.exactOptional() });
export type HandOverRequest = z.infer<typeof handOverRequest>;

/** What the successor receives first. Paths are absolute. */
export const relayOffer = z.object({
  what: z.literal('relay'),
  /** 1 for the first successor. */
  generation: unsigned,
  listenPath: z.string(),
  serverPath: z.string(),
  migrationSocketPath: z.string().nullable(),
  controlPath: z.string().nullable(),
});
export type RelayOffer = z.infer<typeof relayOffer>;

const version = z.object({ major: unsigned, minor: unsigned, capabilities: capabilitiesSchema });

const identity = z.object({
  flags: unsigned,
  regions: z.array(z.object({ size: unsigned, access: unsigned })),
  irqs: z.array(unsigned),
  config: bytes,
  migrationRegion: unsigned.nullable(),
});

const message = { length: unsigned, kept: unsigned, fds: unsigned };

const replayLog = z.object({
  dma: rangeTable(
    z.object({
      flags: unsigned,
      offset: unsigned,
      address: unsigned,
      size: unsigned,
      hasFd: z.boolean(),
      file: unsigned.exactOptional(),
    }),
  ),
  interrupts: z.array(
    z.object({
      index: unsigned,
      actions: z.array(
        z.object({
          action: unsigned,
          vectors: z.array(z.object({ vector: unsigned, hasFd: z.boolean() })),
        }),
      ),
      masked: z.array(unsigned),
    }),
  ),
  config: z.object({
    bytes: z.array(z.tuple([unsigned.max(4095), unsigned.max(255)])),
    resetBits: z.array(z.object({ offset: unsigned, mask: unsigned })),
  }),
  resets: unsigned,
});

/** A server's connection; its socket goes along. */
const connection = z.object({
  nextId: unsigned.max(0xffff),
  /** Sent and not known to be done, oldest first. */
  requests: z.array(
    z.object({
      ...message,
      id: unsigned.max(0xffff),
      senderId: unsigned.max(0xffff),
      command: unsigned.max(0xffff),
      origin: z.enum(['vmm', 'none']),
      posted: z.boolean(),
      silent: z.boolean(),
    }),
  ),
  /** Commands of the server that the VMM has not answered. */
  commands: z.object({
    nextId: unsigned.max(0xffff),
    waiting: z.array(z.tuple([unsigned.max(0xffff), unsigned.max(0xffff)])),
  }),
});

/** A VMM's connection; its socket goes along. */
export const sessionDocument = z.object({
  /** The VMM's VERSION; null before it has come. */
  proposal: bytes.nullable(),
  /** The server that the VMM knows. */
  known: z.object({ path: z.string(), version, identity }).nullable(),
  /** Null when that is gone, since so many milliseconds. */
  connection: connection.nullable(),
  lostForMs: z.number().nonnegative().nullable(),
  /** The VMM has memory of the server. */
  bound: z.boolean(),
  /** Requests that wait for a server, with the time that each has left. */
  held: z.array(z.object({ ...message, restMs: z.number().nonnegative() })),
  log: replayLog,
  note: bytes,
});

/** The document of a bundle. */
export const relayDocument = z.object({
  session: sessionDocument.nullable(),
  /** Clients that wait for the VMM's place. */
  waiting: unsigned,
  /** When the last message had been passed on, in milliseconds of CLOCK_MONOTONIC. */
  heldAtMs: z.number(),
});

type ReadOnly<T> = T extends readonly (infer Element)[]
  ? readonly ReadOnly<Element>[]
  : T extends Uint8Array
    ? T
    : T extends object
      ? { readonly [Key in keyof T]: ReadOnly<T[Key]> }
      : T;

/** As it is read. */
export type ReadSession = z.infer<typeof sessionDocument>;
export type ReadRelay = z.infer<typeof relayDocument>;
/** As it is written. */
export type SessionDocument = ReadOnly<ReadSession>;
export type RelayDocument = ReadOnly<ReadRelay>;

/** Names of fds in the bundle; those of the replay log and of messages are given where they are packed. */
export const FdName = {
  ...SocketName,
  server: 'server',
} as const;
