// SPDX-License-Identifier: Apache-2.0
/**
 * Becoming the one process that listens at a path. A socket that its process left behind may be replaced, a live one may
 * not, and looking is not deciding: two processes that look at one stale path at once would both replace it. So a lock
 * beside the path is held from the look until the new socket stands there:
 *
 *     DIR/.NAME.lock   an OFD lock of it is held while a process takes DIR/NAME; removed by its holder
 *     DIR/.HASH        the new socket, bound and listening, until it is renamed to DIR/NAME
 *
 * The rename replaces a stale socket in one step, so that clients find the old one or the new one. Once it stands there
 * the socket itself says that it is live, and the lock is not needed any more: nothing of it passes to a successor.
 */

import { createHash } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  fstatSync,
  linkSync,
  lstatSync,
  openSync,
  renameSync,
  rmSync,
  type Stats,
  unlinkSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { DevstateError } from '../errors.js';
import { Errno, LockType, native, systemError } from '../native/index.js';

/** Longest path of a socket, bytes. */
const MAX_PATH_LENGTH = 107;
/** How long another process may hold the lock, ms. Its work takes less than one; we BLOCK meanwhile. */
const LOCK_TIMEOUT_MS = 40;

/**
 * A socket that listens at `path`, which had none that is live.
 * @throws DEVSTATE_E_ADDRESS_IN_USE when somebody listens there, or it is no socket, DEVSTATE_E_SYSTEM
 */
export function listenAt(path: string, mode: number, backlog: number): number {
  if (Buffer.byteLength(path) > MAX_PATH_LENGTH) throw systemError(`listen at ${path}`, Errno.ENAMETOOLONG);
  const unlock = lock(path);
  try {
    const found = occupant(path);
    if (found === 'live') throw inUse(path, 'another process listens there; stop it or choose another path');
    if (found === 'other')
      throw inUse(path, 'a file that is not a socket is there; remove it or choose another path');
    return listenAsHidden(path, mode, backlog, found === 'stale');
  } finally {
    unlock();
  }
}

/**
 * Like {@link listenAt} for a socket that another process is to have, and will be asked where it is: it says the name that
 * the socket was bound to, so that it is bound as `path` itself. For a path that one process alone takes.
 * @throws DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM
 */
export function bindAt(path: string, mode: number, backlog: number): number {
  if (Buffer.byteLength(path) > MAX_PATH_LENGTH) throw systemError(`listen at ${path}`, Errno.ENAMETOOLONG);
  if (occupant(path) === 'stale') rmSync(path, { force: true });
  const fd = native.unixListen(path, mode, backlog);
  if (fd === -Errno.EADDRINUSE)
    throw inUse(path, 'another process listens there, or it is no socket; choose another path');
  if (fd < 0) throw systemError(`listen at ${path}`, -fd);
  return fd;
}

/** What is at `path`: nothing, a socket at which no process listens, or something to leave alone. */
function occupant(path: string): 'none' | 'stale' | 'live' | 'other' {
  const info = lstatSync(path, { throwIfNoEntry: false });
  if (info === undefined) return 'none';
  if (!info.isSocket()) return 'other';
  const fd = native.unixConnect(path);
  if (fd >= 0) native.close(fd);
  if (fd === -Errno.ENOENT) return 'none';
  return fd === -Errno.ECONNREFUSED ? 'stale' : 'live';
}

/**
 * The path appears when the socket listens: a client that waits for the path to exist would else find it bound and no one
 * listening.
 */
function listenAsHidden(path: string, mode: number, backlog: number, replace: boolean): number {
  const hash = createHash('sha256').update(basename(path)).digest('hex').slice(0, 8);
  const hidden = join(dirname(path), `.${hash}`);
  // Left by a process that was killed here: we have the lock, so no other process uses it.
  if (lstatSync(hidden, { throwIfNoEntry: false })?.isSocket() === true) rmSync(hidden, { force: true });
  const fd = bindIn(dirname(path), `.${hash}`, mode, backlog);
  if (fd === -Errno.EADDRINUSE)
    throw inUse(path, `${hidden} is in the way; remove it or choose another path`);
  if (fd < 0) throw systemError(`listen at ${path}`, -fd);
  try {
    // Whoever does not know of the lock may have come meanwhile: only a socket found stale is replaced.
    if (replace) renameSync(hidden, path);
    else linkSync(hidden, path);
    return fd;
  } catch (error) {
    native.close(fd);
    const { code, errno = -Errno.EIO } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST') throw inUse(path, 'another process took it this moment; choose another path');
    throw systemError(`listen at ${path}`, -errno);
  } finally {
    rmSync(hidden, { force: true });
  }
}

/** By way of the directory's fd where the whole path is too long for an address. */
function bindIn(directory: string, name: string, mode: number, backlog: number): number {
  const whole = join(directory, name);
  if (Buffer.byteLength(whole) <= MAX_PATH_LENGTH) return native.unixListen(whole, mode, backlog);
  const fd = openSync(directory, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    return native.unixListen(`/proc/self/fd/${fd}/${name}`, mode, backlog);
  } finally {
    closeSync(fd);
  }
}

/** @returns what gives the lock up */
function lock(path: string): () => void {
  const file = join(dirname(path), `.${basename(path)}.lock`);
  const deadline = performance.now() + LOCK_TIMEOUT_MS;
  for (;;) {
    const fd = openLock(file, path);
    const result = native.setLock(fd, LockType.write, 0, 0);
    // Its last holder may have removed it before we had it.
    if (result === 0 && isSame(fstatSync(fd), lstatSync(file, { throwIfNoEntry: false }))) {
      return () => {
        rmSync(file, { force: true });
        closeSync(fd);
      };
    }
    closeSync(fd);
    if (result < 0 && result !== -Errno.EAGAIN && result !== -Errno.EACCES)
      throw systemError(`lock ${file}`, -result);
    if (performance.now() > deadline)
      throw inUse(path, 'another process begins to listen there; stop it or choose another path');
    if (result < 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
  }
}

function openLock(file: string, path: string): number {
  const { O_RDWR, O_CREAT, O_NOFOLLOW, O_NONBLOCK } = constants;
  let fd: number;
  try {
    fd = openSync(file, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK, 0o600);
  } catch (cause) {
    const { code, errno = -Errno.EIO } = cause as NodeJS.ErrnoException;
    if (code === 'ENOENT') {
      const message = `cannot listen at ${path}: there is no folder ${dirname(path)}; make it first`;
      throw new DevstateError('DEVSTATE_E_SYSTEM', message, { cause, errno: Errno.ENOENT });
    }
    if (code === 'ELOOP') throw inUse(path, `${file} is a symbolic link that somebody made; remove it`);
    throw systemError(`listen at ${path}: make ${file}`, -errno);
  }
  // Another user's file in a directory of all is as good: who may hold its lock may as well take the path itself.
  if (fstatSync(fd).isFile()) return fd;
  closeSync(fd);
  throw inUse(path, `${file} is in the way; remove it or choose another path`);
}

function isSame(a: Stats, b: Stats | undefined): boolean {
  return b !== undefined && a.dev === b.dev && a.ino === b.ino;
}

/** Removes the path if it is still the socket with this inode: somebody else's later one stays. */
export function removePath({ name, device, inode }: { name: string; device: number; inode: number }): void {
  const info = lstatSync(name, { throwIfNoEntry: false });
  if (info === undefined || info.dev !== device || info.ino !== inode) return;
  try {
    unlinkSync(name);
  } catch {
    // Whoever cleans up the directory may be faster, or has made it read-only: nothing is to keep the socket open then.
  }
}

/** Opens a file for nothing but its place in the file system. Node.js has no name for it. */
const O_PATH = 0o10000000;

/**
 * Sets the mode of a socket that this process has made at `path`, which umask has cut. What somebody else has put there
 * meanwhile, a link above all, is left as it is.
 * @throws DEVSTATE_E_ADDRESS_IN_USE when it is no socket of this user
 */
export function setSocketMode(path: string, mode: number): void {
  withOwnSocket(path, (itself) => chmodSync(itself, mode));
}

/** Like {@link setSocketMode}, for the owner. */
export function setSocketOwner(
  path: string,
  { uid, gid }: { readonly uid: number; readonly gid: number },
): void {
  withOwnSocket(path, (itself) => chownSync(itself, uid, gid));
}

/** @param work is given a name for the socket that no one else can change */
function withOwnSocket(path: string, work: (itself: string) => void): void {
  const fd = openSync(path, O_PATH | constants.O_NOFOLLOW);
  try {
    const info = fstatSync(fd);
    if (!info.isSocket() || info.uid !== process.geteuid?.())
      throw inUse(
        path,
        'somebody has put another file there meanwhile; choose a path in a folder of your own',
      );
    work(`/proc/self/fd/${fd}`);
  } finally {
    closeSync(fd);
  }
}

function inUse(path: string, why: string): DevstateError {
  return new DevstateError('DEVSTATE_E_ADDRESS_IN_USE', `cannot listen at ${path}: ${why}`);
}
