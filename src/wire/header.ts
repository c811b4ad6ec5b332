// SPDX-License-Identifier: Apache-2.0
/**
 * The message header, before every request and reply:
 *
 *      0        2         4              8        12       16
 *     | id u16 | cmd u16 | size u32     | flags  | error  |
 *
 * `size` counts the header. An error reply is the header alone.
 */

import { HEADER_LENGTH, HeaderFlag } from './constants.js';

/** How the transport finds message boundaries and matches replies, without knowing what messages mean. */
export const vfioUserFraming = {
  headerLength: HEADER_LENGTH,
  messageLength: (view: DataView, offset: number): number => view.getUint32(offset + 4, true),
} as const;

export function messageId(view: DataView, offset = 0): number {
  return view.getUint16(offset, true);
}

export function messageCommand(view: DataView, offset = 0): number {
  return view.getUint16(offset + 2, true);
}

export function messageFlags(view: DataView, offset = 0): number {
  return view.getUint32(offset + 8, true);
}

export function messageError(view: DataView, offset = 0): number {
  return view.getUint32(offset + 12, true);
}

/** Writes a header for a message of `size` bytes in all. */
export function encodeHeader(
  view: DataView,
  offset: number,
  id: number,
  command: number,
  size: number,
  flags: number,
  error = 0,
): void {
  view.setUint16(offset, id, true);
  view.setUint16(offset + 2, command, true);
  view.setUint32(offset + 4, size, true);
  view.setUint32(offset + 8, flags, true);
  view.setUint32(offset + 12, error, true);
}

/** Writes the header of a reply; with `error` (positive errno) an error reply, which is a header alone. */
export function encodeReplyHeader(
  view: DataView,
  offset: number,
  id: number,
  command: number,
  payloadLength: number,
  error = 0,
): void {
  const flags = error === 0 ? HeaderFlag.TYPE_REPLY : HeaderFlag.TYPE_REPLY | HeaderFlag.ERROR;
  encodeHeader(view, offset, id, command, HEADER_LENGTH + (error === 0 ? payloadLength : 0), flags, error);
}
