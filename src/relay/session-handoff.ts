// SPDX-License-Identifier: Apache-2.0
/** A VMM's connection as it goes over to another relay, and back out of what came. */

import { FdKind } from '../handoff/index.js';
import { BackEnd, type KnownServer } from './back-end.js';
import type { Front } from './front.js';
import { encodeBytes, FdName, type ReadSession, type SessionDocument } from './handoff-document.js';
import type { Hold } from './hold.js';
import type { Packer, Unpacker } from './packing.js';
import type { ReplayLog } from './replay-log.js';
import { NOBODY, type Servers } from './servers.js';

/** What a session knows beyond what it keeps in objects of their own. */
export interface SessionFacts {
  /** The VMM's VERSION, as it is passed on. */
  proposal: Uint8Array | undefined;
  /** The server that the VMM was told of, whether it is still there or not. */
  known: KnownServer | undefined;
  /** When the server was lost, of performance.now(); undefined when it is there. */
  lostMs: number | undefined;
  /** The VMM has memory, or ioeventfds, of the server that it has now. */
  bound: boolean;
  /** Bytes that one manager leaves for the next. */
  note: Uint8Array;
}

export interface SessionParts {
  readonly facts: SessionFacts;
  readonly hold: Hold;
  readonly replayLog: ReplayLog;
  readonly servers: Servers;
}

/** Of a session that is frozen; nothing of it changes. */
export function captureSession(
  { facts, hold, replayLog }: SessionParts,
  front: Front,
  back: BackEnd | undefined,
  packer: Packer,
): SessionDocument {
  packer.addOwn(FdKind.SOCKET, FdName.vmm, front.socket.duplicate());
  if (back !== undefined) packer.addOwn(FdKind.SOCKET, FdName.server, back.duplicate());
  const { proposal, known, lostMs, bound, note } = facts;
  return {
    proposal: proposal === undefined ? null : encodeBytes(proposal),
    known: known === undefined ? null : encodeKnown(known),
    connection:
      back === undefined ? null : { ...back.capture(packer), commands: front.commands.capture(back) },
    lostForMs: lostMs === undefined ? null : performance.now() - lostMs,
    bound,
    held: hold.suspend().map(({ request, restMs }) => {
      const { bytes, length, fds } = request;
      return { ...packer.message(bytes, length, fds), restMs };
    }),
    log: replayLog.capture(packer),
    note: encodeBytes(note),
  };
}

function encodeKnown({ path, version, identity }: KnownServer): SessionDocument['known'] {
  const { config, migrationRegion, ...rest } = identity;
  return {
    path,
    version,
    identity: { ...rest, config: encodeBytes(config), migrationRegion: migrationRegion ?? null },
  };
}

/**
 * Makes a session what the document says. @returns its server's connection, frozen; undefined when there is none
 * @throws DEVSTATE_E_HANDOFF_BUNDLE; what was taken is the unpacker's, or in the parts
 */
export function restoreSession(
  { proposal, known, connection, lostForMs, bound, held, log, note }: ReadSession,
  parts: SessionParts,
  front: Front,
  unpacker: Unpacker,
): BackEnd | undefined {
  const { facts } = parts;
  facts.proposal = proposal ?? undefined;
  facts.known = known === null ? undefined : decodeKnown(known);
  facts.lostMs = lostForMs === null ? undefined : performance.now() - lostForMs;
  facts.bound = bound;
  facts.note = note;
  parts.replayLog.restore(log, unpacker);
  let back: BackEnd | undefined;
  if (connection !== null && facts.known !== undefined) {
    back = BackEnd.adopt(unpacker.take(FdKind.SOCKET, FdName.server), facts.known, parts.servers);
    back.restore(connection, { vmm: front, nobody: NOBODY }, unpacker);
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
