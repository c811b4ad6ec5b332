// SPDX-License-Identifier: Apache-2.0

import { isAbsolute } from 'node:path';

/** A path as another process of this machine sees it, from its own root and working directory. */
export function seenBy(pid: number, path: string): string {
  return `/proc/${pid}/${isAbsolute(path) ? 'root' : 'cwd'}/${path}`;
}
