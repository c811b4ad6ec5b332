// SPDX-License-Identifier: Apache-2.0
/** Negative errno values of the addon ↔ errors. */

import { constants } from 'node:os';
import { getSystemErrorName } from 'node:util';
import { DevstateError } from '../errors.js';

/** Positive Linux errno values by name. */
export const Errno = constants.errno;

/** The error of a system call that returned `-errno`; `what` says what was tried, as in "map 4096 bytes". */
export function systemError(what: string, errno: number): DevstateError {
  return new DevstateError('DEVSTATE_E_SYSTEM', `cannot ${what}: ${errnoText(errno)}`, { errno });
}

/**
 * The value of a call of the addon.
 * @throws DEVSTATE_E_SYSTEM when it is a negative errno.
 */
export function check(result: number, what: string): number {
  if (result < 0) throw systemError(what, -result);
  return result;
}

/** The object that a call of the addon made, or DEVSTATE_E_SYSTEM when it gave a negative errno. */
export function checkObject<T extends object>(result: T | number, what: string): T {
  if (typeof result === 'number') throw systemError(what, -result);
  return result;
}

/** What an errno of files and disks means, and what to do about it. */
const MEANINGS: { readonly [name: string]: string } = {
  ENOSPC: 'the file system is full; free space on it',
  EDQUOT: 'the disk quota is used up; free space, or have it raised',
  EIO: "the disk, or the server that has it, reports an I/O error; the kernel's log says more",
  EROFS:
    'the file system is read-only; the kernel makes it so after errors: see its log, and mount it for writing',
  EFBIG: 'the file would be larger than its file system, or the limit of this process (ulimit -f), allows',
  ENODEV: 'the device is gone; see whether it is still attached',
  ENXIO: 'there is no such device any more, or no process reads at the other end',
  ENOMEDIUM: 'no medium is in the device',
  ETIMEDOUT: 'the disk, or the server that has it, did not answer in time; see whether it can be reached',
  ENOLINK: 'the link to the disk is broken; see whether its server can be reached',
  EREMOTEIO: 'the disk reports an error of its own (remote I/O)',
  ENODATA: 'the disk cannot read a part of its medium',
  EBADMSG: 'what the disk gave does not fit its checksum',
  EUCLEAN: 'the file system is damaged; check it',
  ESTALE: 'the file server no longer knows the file; mount it anew',
  EHOSTDOWN: 'the server that has the disk is down',
  EHOSTUNREACH: 'the server that has the disk cannot be reached',
  ENOTCONN: 'the program behind this file system has ended; mount it anew',
  ENOKEY: 'the key of an encrypted folder is missing',
  EACCES: 'permission denied; run as a user who may',
  EPERM: 'not permitted; run as a user who may',
  ENOENT: 'there is no such file or folder; make it first',
  ENOTDIR: 'a part of the path is not a folder',
  ELOOP: 'a symbolic link is where none may be',
  ENAMETOOLONG: 'the path is too long',
  EISDIR: 'it is a directory',
  EBUSY: 'the system uses it: it is mounted, or part of something that is',
  ENOTSUP: 'the file system, or the device, does not support it; choose another place',
  ETXTBSY: 'it is a program that runs',
  EMFILE: 'this process has too many files open; raise its limit (ulimit -n)',
  ENFILE: 'the system has too many files open; raise fs.file-max',
  ENOMEM: 'there is not enough memory',
  ENOBUFS: 'there is not enough memory for sockets',
  EPIPE: 'no process reads at the other end any more',
};

/** An errno in words, with its name: `the file system is full; free space on it (ENOSPC)`. */
export function errnoText(errno: number): string {
  const name = nameOf(Math.abs(errno));
  const meaning = MEANINGS[name];
  return meaning === undefined ? name : `${meaning} (${name})`;
}

/** Names that neither libuv nor Node.js has; the numbers are those of every architecture that devstate runs on. */
const FURTHER_NAMES = { EUCLEAN: 117, ENOMEDIUM: 123, ENOKEY: 126 } as const;

/** What libuv does not know (EDQUOT, ESTALE and others) it calls `Unknown system error -122`. */
const names = new Map(
  Object.entries({ ...Errno, ...FURTHER_NAMES }).map(([name, errno]) => [errno as number, name]),
);

function nameOf(errno: number): string {
  const name = errno > 0 ? getSystemErrorName(-errno) : '';
  return name.startsWith('E') ? name : (names.get(errno) ?? `errno ${errno}`);
}

/** Why a system call failed, in words, of an error of Node.js or of ours. */
export function whySystem(error: unknown): string {
  if (error instanceof DevstateError) return error.message;
  if (!(error instanceof Error)) return String(error);
  const { errno, syscall } = error as NodeJS.ErrnoException;
  return typeof errno === 'number' && errno < 0 && syscall !== undefined ? errnoText(errno) : error.message;
}
