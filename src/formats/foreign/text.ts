// SPDX-License-Identifier: Apache-2.0
/** Bytes as text of a report. */

/** Bytes shown of what is unknown. */
export const FIRST_BYTES = 16;

export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');
}

/** The first bytes, hexadecimal. */
export function firstBytes(bytes: Uint8Array): string {
  return hex(bytes.subarray(0, FIRST_BYTES));
}

/** A name of a file to extract to, from names in the stream: `dbus-vmstate.Disk 0` → `dbus-vmstate.disk-0`. */
export function extractName(...parts: string[]): string {
  const clean = parts.map((part) =>
    part
      .toLowerCase()
      .replace(/[^a-z0-9._-]+/g, '-')
      .slice(0, 64),
  );
  return clean.filter((part) => part !== '').join('.');
}
