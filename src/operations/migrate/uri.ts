// SPDX-License-Identifier: Apache-2.0
/**
 * Where QEMU's own part of the VM goes: a URI that can be migrated to live, and a path that the destination's QEMU may
 * take. QEMU removes whatever is at the path before it listens there: a disk image, or the socket of another process.
 */

import { constants, type Stats } from 'node:fs';
import { lstat, open, stat } from 'node:fs/promises';
import { basename, dirname, isAbsolute } from 'node:path';
import { DevstateError } from '../../errors.js';
import { Errno, native } from '../../native/index.js';
import { listeningPaths, type QmpClient, seenBy } from '../../qemu/index.js';

/** Longest path of a socket, bytes. */
const MAX_PATH_LENGTH = 107;
/** Opens a file for nothing but its place in the file system. Node.js has no name for it. */
const O_PATH = 0o10000000;

/** @throws DEVSTATE_E_USAGE for a URI of another kind than those that are supported */
export function requireUri(uri: string): void {
  const path = pathOf(uri);
  if (path === undefined && /^tcp:.*:\d+(,.*)?$/.test(uri)) return;
  if (path === undefined || path === '') usage(`--uri ${uri}: give unix:PATH or tcp:HOST:PORT`);
  const length = Buffer.byteLength(path);
  if (length > MAX_PATH_LENGTH)
    usage(`--uri: the path of a socket may have ${MAX_PATH_LENGTH} bytes, ${path} has ${length}`);
}

function usage(message: string): never {
  throw new DevstateError('DEVSTATE_E_USAGE', message);
}

function pathOf(uri: string): string | undefined {
  return /^unix:(.*)$/s.exec(uri)?.[1];
}

/**
 * Why the destination's QEMU must not listen at `uri`, as it would find it in its own folder and file system; undefined if
 * it may, or if that cannot be looked at: it runs elsewhere, or as another user.
 */
export async function whyNotListen(
  uri: string,
  { pid }: Pick<QmpClient, 'pid'>,
): Promise<string | undefined> {
  const path = pathOf(uri);
  if (path === undefined || pid <= 0) return undefined;
  const seen = (name: string): string => seenBy(pid, name);
  const about = (why: string): string => `the destination QEMU cannot listen at --uri ${uri}: ${why}`;
  try {
    if ((await found(seen('/'))) === undefined) return undefined;
    const folder = dirname(path);
    const parent = await stat(seen(folder)).catch(none);
    if (parent?.isDirectory() !== true) return about(`there is no folder ${folder}; make it first`);
    const there = await found(seen(path));
    if (there === undefined) return undefined;
    if (!there.isSocket())
      return about('a file that is not a socket is there, which QEMU would remove; choose another path');
    const listener = await listenerAt(seen, path, there, pid);
    if (listener !== undefined)
      return about(
        `a process listens at ${listener}, which QEMU would cut off; choose another path, or remove the socket if it is a stale one`,
      );
    return undefined;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EACCES' || code === 'EPERM' || code === 'ENOENT') return undefined;
    throw error;
  }
}

/**
 * Who listens at a socket, by the path that is known of it. A QEMU that waits for a VM is found without connecting, which
 * would end its wait; a server that has renamed its socket has no name that tells, and does not mind a connection.
 */
async function listenerAt(
  seen: (name: string) => string,
  path: string,
  there: Stats,
  pid: number,
): Promise<string | undefined> {
  for (const name of await listeningPaths(pid)) {
    if (basename(name) !== basename(path)) continue;
    // What was bound as a relative path may be anywhere.
    if (!isAbsolute(name) || isSame(there, await found(seen(name)))) return name;
  }
  // The path as it is seen may be too long for an address.
  const file = await open(seen(path), O_PATH | constants.O_NOFOLLOW);
  try {
    const connected = native.unixConnect(`/proc/self/fd/${file.fd}`);
    if (connected >= 0) native.close(connected);
    return connected === -Errno.ECONNREFUSED ? undefined : path;
  } finally {
    await file.close();
  }
}

async function found(path: string): Promise<Stats | undefined> {
  return lstat(path).catch(none);
}

function none(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') throw error;
}

function isSame(one: Stats, other: Stats | undefined): boolean {
  return other !== undefined && one.dev === other.dev && one.ino === other.ino;
}
