// SPDX-License-Identifier: Apache-2.0
/** A VMM's connection as it goes over to another relay, and back out of what came. */

import { type Bundle, FdKind } from '../handoff/index.js';
import type { Fd } from '../transport/index.js';
import { BackEnd, type KnownServer } from './back-end.js';
import { DmaMaps } from './dma-maps.js';
import type { Front } from './front.js';
import { FdName, type ReadSession, type SessionDocument } from './handoff-document.js';
import type { Hold } from './hold.js';
import { type Packer, Unpacker } from './packing.js';
import type { CapturedLog, ReplayLog } from './replay-log.js';
import { NO_SENDER, type Servers } from './servers.js';
import type { SessionFacts } from './session-facts.js';

/** What another relay has handed over of a session. */
export interface HandedSession {
  readonly document: ReadSession;
  /** Becomes the session's. */
  readonly dma: DmaMaps;
  readonly unpacker: Unpacker;
}

export interface SessionParts {
  readonly facts: SessionFacts;
  readonly hold: Hold;
  readonly replayLog: ReplayLog;
  readonly servers: Servers;
}

/** Captures a session that is frozen, and changes nothing of it. @param log captured already */
export function captureSession(
  { facts, hold }: SessionParts,
  front: Front,
  back: BackEnd | undefined,
  log: CapturedLog,
  packer: Packer,
): SessionDocument {
  packer.addOwn(FdKind.SOCKET, FdName.vmm, front.socket.duplicate());
  if (back !== undefined) packer.addOwn(FdKind.SOCKET, FdName.server, back.duplicate());
  const { proposal, known, lostMs, bound, note } = facts;
  return {
    proposal: proposal ?? null,
    known: known === undefined ? null : encodeKnown(known),
    connection:
      back === undefined ? null : { ...back.capture(packer), commands: front.commands.capture(back) },
    lostForMs: lostMs === undefined ? null : performance.now() - lostMs,
    bound,
    held: hold.suspend().map(({ request, restMs }) => {
      const { bytes, length, fds } = request;
      return { ...packer.message(bytes, length, fds), restMs };
    }),
    log,
    note,
  };
}

function encodeKnown({ path, version, identity }: KnownServer): SessionDocument['known'] {
  const { migrationRegion, ...rest } = identity;
  return {
    path,
    version,
    identity: { ...rest, migrationRegion: migrationRegion ?? null },
  };
}

/**
 * Makes a session what the document says. @returns its server's connection, frozen; undefined when there is none
 * @throws DEVSTATE_E_HANDOFF_BUNDLE; what was taken is the unpacker's, or in the parts
 */
export function restoreSession(
  { document, dma, unpacker }: HandedSession,
  parts: SessionParts,
  front: Front,
): BackEnd | undefined {
  const { proposal, known, connection, lostForMs, bound, held, log, note } = document;
  const { facts } = parts;
  facts.proposal = proposal ?? undefined;
  facts.known = known === null ? undefined : decodeKnown(known);
  facts.lostMs = lostForMs === null ? undefined : performance.now() - lostForMs;
  facts.bound = bound;
  facts.note = note;
  parts.replayLog.restore(log, dma, unpacker);
  let back: BackEnd | undefined;
  if (connection !== null && facts.known !== undefined) {
    back = BackEnd.adopt(unpacker.take(FdKind.SOCKET, FdName.server), facts.known, parts.servers);
    back.restore(connection, { vmm: front, none: NO_SENDER }, unpacker);
    front.commands.restore(back, connection.commands);
    facts.known = back;
  }
  for (const { restMs, ...message } of held) parts.hold.restore(unpacker.message(message), restMs);
  return back;
}

function decodeKnown({ path, version, identity }: NonNullable<ReadSession['known']>): KnownServer {
  const { migrationRegion, ...rest } = identity;
  return { path, version, identity: { ...rest, migrationRegion: migrationRegion ?? undefined } };
}

/**
 * Makes a session of what has come. @param newSession takes the VMM's socket
 * @throws DEVSTATE_E_HANDOFF_BUNDLE, having closed what it took
 */
export async function adoptSession<Adopted>(
  bundle: Bundle,
  document: ReadSession,
  newSession: (fd: Fd, from: HandedSession) => Adopted,
): Promise<Adopted> {
  const unpacker = await Unpacker.open(bundle);
  const dma = new DmaMaps();
  try {
    await dma.restore(document.log.dma, unpacker);
    return newSession(unpacker.take(FdKind.SOCKET, FdName.vmm), { document, dma, unpacker });
  } catch (error) {
    dma.close();
    throw error;
  } finally {
    unpacker.close();
  }
}
