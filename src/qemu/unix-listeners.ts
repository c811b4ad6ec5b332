// SPDX-License-Identifier: Apache-2.0
/** UNIX sockets at which somebody listens, found without connecting: a QEMU that waits for a VM takes the first who connects. */

import { readFile } from 'node:fs/promises';

/** Flag of a socket that listens, in /proc/net/unix: `__SO_ACCEPTCON`. */
const LISTENS = 0x10000;

/**
 * The paths as they were bound, so possibly relative to a folder that is not known.
 * @param process whose network namespace: a process id, or `self`
 */
export async function listeningPaths(process: number | 'self' = 'self'): Promise<string[]> {
  const sockets = await readFile(`/proc/${process}/net/unix`, 'utf8');
  return sockets.split('\n').flatMap((line) => {
    // Num RefCount Protocol Flags Type St Inode Path
    const [, , , flags = '', , , , ...name] = line.trim().split(/ +/);
    return name.length > 0 && (Number.parseInt(flags, 16) & LISTENS) !== 0 ? [name.join(' ')] : [];
  });
}
