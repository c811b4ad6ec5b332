// SPDX-License-Identifier: Apache-2.0
/** Messages as the relay passes them on and makes them: whole, header included. */

import type { Fd } from '../transport/index.js';
import {
  encodeHeader,
  encodeReplyHeader,
  HEADER_LENGTH,
  HeaderFlag,
  messageCommand,
  messageId,
} from '../wire/index.js';

export const NO_FDS: readonly Fd[] = [];

/** A message as it came: valid until its receiver returns. */
export interface Message {
  readonly view: DataView;
  readonly bytes: Uint8Array;
  readonly length: number;
}

/** A message that no other code holds, with what travels along. */
export interface OwnMessage extends Message {
  readonly fds: readonly Fd[];
}

export function ownCopy({ bytes, length }: Message, fds: readonly Fd[]): OwnMessage {
  const copy = bytes.slice(0, length);
  return { bytes: copy, view: new DataView(copy.buffer), length, fds };
}

export function takeAll(fds: readonly Fd[]): readonly Fd[] {
  return fds.length === 0 ? NO_FDS : fds.map((fd) => fd.take());
}

export function payloadOf({ bytes, length }: Message): Uint8Array {
  return bytes.slice(HEADER_LENGTH, length);
}

/** A request with id 0. `fds` stay the caller's: the message has duplicates. */
export function encodeRequest(
  command: number,
  payload: readonly Uint8Array[],
  fds: readonly Fd[] = NO_FDS,
): OwnMessage {
  const bytes = new Uint8Array(payload.reduce((length, part) => length + part.length, HEADER_LENGTH));
  let at = HEADER_LENGTH;
  for (const part of payload) {
    bytes.set(part, at);
    at += part.length;
  }
  const view = new DataView(bytes.buffer);
  encodeHeader(view, 0, 0, command, bytes.length, HeaderFlag.TYPE_COMMAND);
  return { bytes, view, length: bytes.length, fds: fds.map((fd) => fd.duplicate()) };
}

/** The reply to the request whose header is at the beginning of `request`; with `errno` an error reply. */
export function encodeReply(request: DataView, errno: number, payload: Uint8Array | undefined): Uint8Array {
  const length = errno === 0 ? (payload?.length ?? 0) : 0;
  const bytes = new Uint8Array(HEADER_LENGTH + length);
  const view = new DataView(bytes.buffer);
  encodeReplyHeader(view, 0, messageId(request), messageCommand(request), length, errno);
  if (payload !== undefined && length > 0) bytes.set(payload, HEADER_LENGTH);
  return bytes;
}
