// SPDX-License-Identifier: Apache-2.0
/**
 * DEVSTATE_IMAGES: whether two devices work on one image file. The one that has the image holds a lock over all of it, also
 * over what is beyond its end. It leaves one byte out, far beyond the end, and a process that has the same file open sees a lock
 * everywhere but there, on whatever host, by whatever path.
 *
 *     GET   request  byte u64                          reply  JSON, `imagesReport`
 *     SET   byte u64, 0 to lock everything again
 */

import * as z from '../zod.js';
import { readU64, requireBytes, writeU64 } from './reader.js';

export const IMAGE_BYTE_LENGTH = 8;
/** Bytes that may be left out: beyond the end of any image. */
export const MIN_IMAGE_BYTE = 2 ** 50;
export const MAX_IMAGE_BYTE = 2 ** 51;

export const imagesReport = z.object({
  images: z.array(
    z.object({
      /** As the server was given it; left out for a client that is no manager. */
      path: z.string().optional(),
      /** The server holds its lock. */
      locked: z.boolean(),
      /** No one else has the byte locked that was asked for. */
      free: z.boolean(),
    }),
  ),
});
export type ImagesReport = z.infer<typeof imagesReport>;

export function encodeImageByte(byte: number): Uint8Array {
  const bytes = new Uint8Array(IMAGE_BYTE_LENGTH);
  writeU64(new DataView(bytes.buffer), 0, byte);
  return bytes;
}

/** @throws RequestError EINVAL */
export function decodeImageByte(view: DataView, at: number, end: number): number {
  requireBytes(view, at, end, IMAGE_BYTE_LENGTH, 'DEVSTATE_IMAGES');
  return readU64(view, at);
}
