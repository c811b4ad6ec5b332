// SPDX-License-Identifier: Apache-2.0
/** Where a path leads that is to be written to: not through the link of another user. */

import { lstatSync, readlinkSync, realpathSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { DevstateError } from './errors.js';

/**
 * What a symbolic link leads to, or the path itself. A link in a directory that others may write to is followed if it is
 * ours or the administrator's: anybody could have put it there to have us overwrite a file that only we may.
 * @throws DEVSTATE_E_OUTPUT
 */
export function endOfLink(path: string): string {
  const link = lstatSync(path, { throwIfNoEntry: false });
  if (link?.isSymbolicLink() !== true) return path;
  const user = process.geteuid?.() ?? 0;
  const ours = (owner: number): boolean => owner === user || owner === 0;
  const directory = statSync(dirname(path));
  const closed = (directory.mode & 0o022) === 0 && ours(directory.uid);
  if (!ours(link.uid) && !closed) {
    const why = `it is a symbolic link that another user (uid ${link.uid}) made, to ${readlinkSync(path)}`;
    throw refused(path, `${why}; name the file itself`);
  }
  try {
    return realpathSync(path);
  } catch (cause) {
    // Links of /proc/PID/fd lead to pipes, which have no path.
    if (statSync(path, { throwIfNoEntry: false }) !== undefined) return path;
    throw refused(path, 'it is a symbolic link that leads nowhere; remove it or name the file itself', cause);
  }
}

function refused(path: string, why: string, cause?: unknown): DevstateError {
  return new DevstateError('DEVSTATE_E_OUTPUT', `cannot write ${path}: ${why}`, { cause });
}
