// SPDX-License-Identifier: Apache-2.0
/**
 * CRC-32C (Castagnoli; RFC 3720 appendix B.4), the checksum of the envelope.
 * The native addon computes it with the processor's instruction; where the addon does not load, eight tables do.
 */
import { DevstateError } from '../../errors.js';
import { loadPackageAddon } from '../../native/loader.js';

/**
 * CRC-32C of `bytes`, continued from `seed`: `crc(ab) === crc(b, crc(a))`, `crc('') === 0`.
 * @returns an unsigned 32-bit number
 */
export type Crc32c = (bytes: Uint8Array, seed?: number) => number;

/** The polynomial 0x1EDC6F41, bits reversed. */
const POLYNOMIAL = 0x82f6_3b78;

/** `TABLES[256 * n + byte]`: what `byte` contributes when `n` bytes follow it in a block of eight. */
const TABLES = new Uint32Array(8 * 256);
for (let byte = 0; byte < 256; byte++) {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? POLYNOMIAL : 0);
  TABLES[byte] = crc;
}
for (let index = 256; index < TABLES.length; index++) {
  const shorter = TABLES[index - 256]!;
  TABLES[index] = (shorter >>> 8) ^ TABLES[shorter & 0xff]!;
}

/** CRC-32C in plain TypeScript, eight bytes at a time. */
export const crc32cTable: Crc32c = (bytes, seed = 0) => {
  let crc = ~seed;
  let at = 0;
  for (const end = bytes.length - 7; at < end; at += 8) {
    crc ^= bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
    crc =
      TABLES[1792 + (crc & 0xff)]! ^
      TABLES[1536 + ((crc >>> 8) & 0xff)]! ^
      TABLES[1280 + ((crc >>> 16) & 0xff)]! ^
      TABLES[1024 + (crc >>> 24)]! ^
      TABLES[768 + bytes[at + 4]!]! ^
      TABLES[512 + bytes[at + 5]!]! ^
      TABLES[256 + bytes[at + 6]!]! ^
      TABLES[bytes[at + 7]!]!;
  }
  for (; at < bytes.length; at++) crc = (crc >>> 8) ^ TABLES[(crc ^ bytes[at]!) & 0xff]!;
  return ~crc >>> 0;
};

/** Below this many bytes the tables are done before a call into the addon would be. */
const SHORT = 96;

/** The addon's CRC-32C; undefined where the addon does not load, which formats can do without. */
function addonCrc32c(): Crc32c | undefined {
  try {
    const native = loadPackageAddon();
    return (bytes, seed = 0) => native.crc32c(bytes, 0, bytes.length, seed);
  } catch (error) {
    if (error instanceof DevstateError && error.code === 'DEVSTATE_E_ADDON') return undefined;
    throw error;
  }
}

const long = addonCrc32c() ?? crc32cTable;

/** The fastest CRC-32C there is here. */
export const crc32c: Crc32c = (bytes, seed = 0) =>
  bytes.length < SHORT ? crc32cTable(bytes, seed) : long(bytes, seed);
