// SPDX-License-Identifier: Apache-2.0
/**
 * Words about errors, for which the replies and the end of a connection have no room. DEVSTATE_LAST_ERROR:
 *
 *     GET   request  id u16 (optional)   reply  UTF-8: why the last command was refused; with an id, if that was its id
 *     SET   UTF-8, from the server to a manager, No_reply: why it closes this connection, which it does next
 */

import { Command, Feature, FeatureFlag, HEADER_LENGTH, HeaderFlag } from './constants.js';
import { decodeFeatureHeader, encodeFeatureHeader, FEATURE_LENGTH } from './feature.js';
import { encodeHeader } from './header.js';

/** Longest explanation of an error, characters. */
export const MAX_EXPLANATION_LENGTH = 4096;
/** Bytes that its UTF-8 has at most. */
export const MAX_EXPLANATION_BYTES = 3 * MAX_EXPLANATION_LENGTH;

const FAREWELL = Feature.DEVSTATE_LAST_ERROR | FeatureFlag.SET;

/** The message id of the command that is meant; undefined for the last one. */
export function decodeErrorOf(view: DataView, at: number, end: number): number | undefined {
  return end - at >= 2 ? view.getUint16(at, true) : undefined;
}

export function encodeErrorOf(id: number): Uint8Array {
  const bytes = new Uint8Array(2);
  new DataView(bytes.buffer).setUint16(0, id, true);
  return bytes;
}

/** The whole message by which a server says why it closes a connection. */
export function encodeFarewell(words: string): Uint8Array {
  const text = new TextEncoder().encode(words.slice(0, MAX_EXPLANATION_LENGTH));
  const start = HEADER_LENGTH + FEATURE_LENGTH;
  const bytes = new Uint8Array(start + text.length);
  const view = new DataView(bytes.buffer);
  const flags = HeaderFlag.TYPE_COMMAND | HeaderFlag.NO_REPLY;
  encodeHeader(view, 0, 0, Command.DEVICE_FEATURE, bytes.length, flags);
  encodeFeatureHeader(view, HEADER_LENGTH, FEATURE_LENGTH + text.length, FAREWELL);
  bytes.set(text, start);
  return bytes;
}

/** What a server's DEVICE_FEATURE says as its last word; undefined when it is another. @throws RequestError EINVAL */
export function decodeFarewell(view: DataView, length: number): string | undefined {
  const { flags } = decodeFeatureHeader(view, HEADER_LENGTH, length);
  if (flags !== FAREWELL) return undefined;
  const at = view.byteOffset + HEADER_LENGTH + FEATURE_LENGTH;
  const end = Math.min(view.byteOffset + length, at + MAX_EXPLANATION_BYTES);
  return new TextDecoder().decode(new Uint8Array(view.buffer, at, end - at));
}
