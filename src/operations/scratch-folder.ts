// SPDX-License-Identifier: Apache-2.0
/** A folder in the system's temporary one for the sockets and files of one operation; only this user may enter it. */

import { lstatSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DevstateError } from '../errors.js';
import { whySystem } from '../native/index.js';

/** A folder that is older may be removed if its process has ended, ms: what that process began may still use it before. */
const LEFT_MS = 600_000;

/**
 * Its maker removes it. Those that processes have left which were killed are removed by the next one.
 * @param kind a word for its name
 * @throws DEVSTATE_E_OUTPUT
 */
export function makeScratchFolder(kind: string): string {
  const parent = tmpdir();
  const prefix = `devstate-${kind}-`;
  removeLeft(parent, prefix);
  try {
    return mkdtempSync(join(parent, `${prefix}${process.pid}-`));
  } catch (cause) {
    const message = `cannot make a folder for sockets in ${parent}: ${whySystem(cause)}; or set TMPDIR`;
    throw new DevstateError('DEVSTATE_E_OUTPUT', message, { cause });
  }
}

function removeLeft(parent: string, prefix: string): void {
  try {
    for (const name of readdirSync(parent)) {
      const [, pid] = /^(\d+)-\w{6}$/.exec(name.startsWith(prefix) ? name.slice(prefix.length) : '') ?? [];
      if (pid === undefined || isAlive(Number(pid))) continue;
      const path = join(parent, name);
      const info = lstatSync(path, { throwIfNoEntry: false });
      if (info?.isDirectory() !== true || info.uid !== process.geteuid?.()) continue;
      if (Date.now() - info.mtimeMs >= LEFT_MS) rmSync(path, { recursive: true, force: true });
    }
  } catch {
    // What is left of others is no reason not to work.
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
