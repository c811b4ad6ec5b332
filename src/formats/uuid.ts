// SPDX-License-Identifier: Apache-2.0
/**
 * UUIDs (RFC 4122) as this project uses them: in memory the canonical lower-case text, so that `===` compares
 * and a `Map` can be keyed by one; on the wire 16 bytes in the order of the text.
 */
import { randomUUID } from 'node:crypto';
import { DevstateError } from '../errors.js';

/** A UUID as canonical lower-case text, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`. */
export type Uuid = string & { readonly __uuid: true };

/** Length of a UUID on the wire. */
export const UUID_LENGTH = 16;

const PATTERN = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** Whether `text` is a UUID, in either case. */
export function isUuid(text: string): boolean {
  return PATTERN.test(text.toLowerCase());
}

/** The UUID that `text` spells, in either case; throws DEVSTATE_E_UUID if it is none. */
export function parseUuid(text: string): Uuid {
  const canonical = text.toLowerCase();
  if (PATTERN.test(canonical)) return canonical as Uuid;
  throw new DevstateError(
    'DEVSTATE_E_UUID',
    `${JSON.stringify(text.slice(0, 64))} is not a UUID: write it as 8-4-4-4-12 hexadecimal digits`,
  );
}

/** A new random (version 4) UUID. */
export function newUuid(): Uuid {
  return randomUUID() as Uuid;
}

/** The UUID in the 16 bytes at `offset`; throws a RangeError if there are fewer. */
export function uuidFromBytes(bytes: Uint8Array, offset = 0): Uuid {
  if (offset + UUID_LENGTH > bytes.length) throw new RangeError('a UUID is 16 bytes');
  const hex = Buffer.from(bytes.buffer, bytes.byteOffset + offset, UUID_LENGTH).toString('hex');
  const text = `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
  return text as Uuid;
}

/** The 16 bytes of a UUID. */
export function uuidToBytes(uuid: Uuid): Uint8Array {
  return new Uint8Array(Buffer.from(uuid.replaceAll('-', ''), 'hex'));
}

/** Orders UUIDs by their bytes: negative, zero or positive, as for `Array.sort`. */
export function compareUuids(a: Uuid, b: Uuid): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
