// SPDX-License-Identifier: Apache-2.0
/** Bytes as people read them: sixteen a line, in hexadecimal and as text. */

/** Bytes shown of one record or section. */
export const HEX_LENGTH = 4096;

const ROW = 16;

/**
 * @param bytes the first bytes of what is shown
 * @param length how many there are of it in all
 */
export function hexLines(bytes: Uint8Array, length: number, prefix: string): string[] {
  const lines: string[] = [];
  for (let at = 0; at < bytes.length; at += ROW) {
    const row = bytes.subarray(at, at + ROW);
    const digits = [...row].map((byte) => byte.toString(16).padStart(2, '0')).join(' ');
    const text = [...row].map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '.'));
    lines.push(`${prefix}${at.toString(16).padStart(4, '0')}  ${digits.padEnd(3 * ROW)} ${text.join('')}`);
  }
  if (length > bytes.length) lines.push(`${prefix}… ${length - bytes.length} further bytes`);
  return lines;
}
