// SPDX-License-Identifier: Apache-2.0
/**
 * Messages that a server has received and not carried out, as they go to its successor: few of them in the document, more in
 * a sealed memory file, as the document has to fit a message of the handoff.
 */

import { documentBytes, malformed } from '../documents/index.js';
import { type Bundle, FdKind, sealedContent, sealedMemory } from '../handoff/index.js';
import { closeAll, type Fd } from '../transport/index.js';
import { HEADER_LENGTH, vfioUserFraming } from '../wire/index.js';
import * as z from '../zod.js';
import { MAX_MESSAGE_FDS, MAX_MESSAGE_LENGTH } from './capabilities.js';

/** What may wait on one connection. */
export const MAX_BACKLOG_MESSAGES = 4096;
export const MAX_BACKLOG_BYTES = 16 * 1024 * 1024;
export const MAX_BACKLOG_FDS = 1024;
/** A backlog of more bytes goes into a file. */
const MAX_INLINE_BYTES = 256 * 1024;

/** Name in the bundle of the file, and of an fd that came with a message. */
export const BACKLOG_NAME = 'backlog';
const passengerName = (index: number): string => `backlog:${index}`;

const fds = z.number().int().nonnegative().max(MAX_MESSAGE_FDS);
/** Either all messages are in the document, or all are in the file, one after the other. */
export const backlogSchema = z.union([
  z.array(z.object({ bytes: documentBytes(MAX_MESSAGE_LENGTH), fds })).max(MAX_BACKLOG_MESSAGES),
  z
    .array(z.object({ length: z.number().int().min(HEADER_LENGTH).max(MAX_MESSAGE_LENGTH), fds }))
    .max(MAX_BACKLOG_MESSAGES),
]);
type BacklogDocument = z.infer<typeof backlogSchema>;

export interface BacklogMessage {
  readonly bytes: Uint8Array;
  readonly fds: Fd[];
}

/** @param add puts an fd into the bundle, which owns it from then on */
export async function packBacklog(
  backlog: readonly BacklogMessage[],
  add: (kind: FdKind, name: string, fd: Fd) => void,
): Promise<BacklogDocument> {
  let passengers = 0;
  for (const fd of backlog.flatMap((message) => message.fds))
    add(FdKind.PASSENGER, passengerName(passengers++), fd.duplicate());
  const total = backlog.reduce((sum, { bytes }) => sum + bytes.length, 0);
  if (total <= MAX_INLINE_BYTES) return backlog.map(({ bytes, fds }) => ({ bytes, fds: fds.length }));
  const parts = backlog.map(({ bytes }) => bytes);
  add(FdKind.SEALED, BACKLOG_NAME, await sealedMemory('devstate-backlog', parts));
  return backlog.map(({ bytes, fds }) => ({ length: bytes.length, fds: fds.length }));
}

/** The messages own their fds. @throws DEVSTATE_E_HANDOFF_BUNDLE */
export async function unpackBacklog(document: BacklogDocument, bundle: Bundle): Promise<BacklogMessage[]> {
  const contents = await readContents(document, bundle);
  for (const bytes of contents) requireMessage(bytes);
  const count = document.reduce((sum, message) => sum + message.fds, 0);
  if (count > MAX_BACKLOG_FDS)
    throw malformed(`waiting messages with ${count} fds; ${MAX_BACKLOG_FDS} are taken`);
  const taken: Fd[] = [];
  try {
    for (let i = 0; i < count; i++) taken.push(bundle.take(passengerName(i), FdKind.PASSENGER));
  } catch (error) {
    closeAll(taken);
    throw error;
  }
  return document.map((message, index) => ({ bytes: contents[index]!, fds: taken.splice(0, message.fds) }));
}

async function readContents(document: BacklogDocument, bundle: Bundle): Promise<Uint8Array[]> {
  const inline = document.map((message) => ('bytes' in message ? message.bytes : undefined));
  if (inline.every((bytes) => bytes !== undefined)) {
    requireTotal(inline.reduce((sum, bytes) => sum + bytes.length, 0));
    return inline;
  }
  const lengths = document.map((message) => ('length' in message ? message.length : 0));
  const total = lengths.reduce((sum, length) => sum + length, 0);
  requireTotal(total);
  const fd = bundle.take(BACKLOG_NAME, FdKind.SEALED);
  try {
    const whole = await sealedContent(fd, MAX_BACKLOG_BYTES);
    if (whole.length !== total)
      throw malformed(`waiting messages of ${total} bytes are said to be in a file of ${whole.length}`);
    let at = 0;
    return lengths.map((length) => {
      at += length;
      return new Uint8Array(whole.subarray(at - length, at));
    });
  } finally {
    fd.close();
  }
}

function requireTotal(bytes: number): void {
  if (bytes > MAX_BACKLOG_BYTES)
    throw malformed(`waiting messages of ${bytes} bytes; ${MAX_BACKLOG_BYTES} are taken`);
}

/** A message says how long it is, and that has to be so. */
function requireMessage(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < HEADER_LENGTH || vfioUserFraming.messageLength(view, 0) !== bytes.length)
    throw malformed(`a waiting message of ${bytes.length} bytes is none`);
}
