// SPDX-License-Identifier: Apache-2.0
/** Which addon fits this process: what it was compiled for, as the folder of a prebuilt one is named. */

import { readFileSync } from 'node:fs';

/**
 * `linux-x64` with glibc, `linux-x64-musl` with musl. An addon for the other C library is not even tried: musl takes glibc's
 * libc.so.6 for itself, and with a package that has the symbols of glibc one may load and fail later.
 * @param maps the process's `/proc/self/maps`: that musl is installed beside glibc says nothing of Node.js
 */
export function platformName(maps = ownMaps()): string {
  // Debian's package calls the file libc.so, to which ld-musl-… leads; glibc's is libc.so.6.
  const libc = /\/(ld-musl-[^/\n]*|libc\.so)$/m.test(maps) ? '-musl' : '';
  return `${process.platform}-${process.arch}${libc}`;
}

function ownMaps(): string {
  try {
    return readFileSync('/proc/self/maps', 'latin1');
  } catch {
    return '';
  }
}
