// SPDX-License-Identifier: Apache-2.0
/**
 * A file that has no name until it is whole: O_TMPFILE, or, where the file system has none, a random name that no one could
 * have taken before (O_EXCL). It is this user's and for this user only, whatever somebody has put into the directory.
 */

import { randomBytes } from 'node:crypto';
import { constants, existsSync } from 'node:fs';
import { type FileHandle, lstat, open, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { check, Errno, native } from '../../native/index.js';

const MODE = 0o600;
const { O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW, O_DIRECTORY } = constants;
/** Node.js has no name for it; the rest of O_TMPFILE is O_DIRECTORY. */
const O_TMPFILE = 0o20000000 | O_DIRECTORY;
/** Characters of the final name that the temporary one shows. */
const SHOWN = 100;

export class NewFile {
  readonly handle: FileHandle;
  readonly #path: string;
  /** Undefined while it has no name. */
  #name: string | undefined;

  private constructor(path: string, handle: FileHandle, name: string | undefined) {
    this.#path = path;
    this.handle = handle;
    this.#name = name;
  }

  /** @param path where it is to be once it is whole @throws what open(2) says */
  static async create(path: string): Promise<NewFile> {
    const anonymous = await openAnonymous(dirname(path));
    if (anonymous !== undefined) return new NewFile(path, anonymous, undefined);
    const name = temporaryName(path);
    return new NewFile(path, await openNamed(name), name);
  }

  /**
   * Gives it its name, once it and its content are on disk, and closes it.
   * @param replace what has the name now is replaced, in one step; without, EEXIST if there is something
   */
  async publish(replace: boolean): Promise<void> {
    await this.handle.sync();
    if (this.#name === undefined) this.#link(replace ? temporaryName(this.#path) : this.#path);
    else if (!replace) await this.#linkNamed();
    const own = await this.handle.stat();
    await this.handle.close();
    if (this.#name !== this.#path && this.#name !== undefined) await rename(this.#name, this.#path);
    this.#name = undefined;
    const there = await lstat(this.#path);
    // In a directory that anybody may change, another file may have been put under the temporary name.
    if (there.dev !== own.dev || there.ino !== own.ino)
      throw new Error('another file was put in its place at the same moment; choose a folder of your own');
    const directory = await open(dirname(this.#path), 'r');
    await directory.sync().finally(() => directory.close());
  }

  /** Nothing of it is left. */
  async discard(): Promise<void> {
    await this.handle.close().catch(() => {});
    if (this.#name !== undefined) await rm(this.#name, { force: true }).catch(() => {});
  }

  #link(name: string): void {
    const result = native.linkFile(this.handle.fd, name);
    if (result === -Errno.EEXIST) throw exists();
    check(result, `link ${name}`);
    this.#name = name;
  }

  /** By link(2) in place of rename(2), which would replace. */
  async #linkNamed(): Promise<void> {
    const { link } = await import('node:fs/promises');
    const temporary = this.#name!;
    await link(temporary, this.#path).catch((error: NodeJS.ErrnoException) => {
      throw error.code === 'EEXIST' ? exists() : error;
    });
    await rm(temporary, { force: true });
    this.#name = this.#path;
  }
}

function exists(): Error {
  return new Error('it was made by somebody else meanwhile; choose another path');
}

/** Undefined where the file system or the kernel cannot. */
async function openAnonymous(directory: string): Promise<FileHandle | undefined> {
  // Without /proc it could never be given a name.
  if (!existsSync('/proc/self/fd')) return undefined;
  try {
    return await open(directory, O_RDWR | O_TMPFILE, MODE);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    // Node.js has ENOTSUP for Linux's EOPNOTSUPP.
    if (code === 'ENOTSUP' || code === 'EISDIR' || code === 'EINVAL') return undefined;
    throw error;
  }
}

async function openNamed(name: string): Promise<FileHandle> {
  try {
    return await open(name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, MODE);
  } catch (error) {
    const directory = dirname(name);
    // As /proc and /sys say it of new files.
    const isFixed = (error as NodeJS.ErrnoException).code === 'ENOENT' && existsSync(directory);
    if (!isFixed) throw error;
    throw new Error(`no file can be made in ${directory}; choose another folder`, { cause: error });
  }
}

function temporaryName(path: string): string {
  const random = randomBytes(8).toString('hex');
  return join(dirname(path), `.${basename(path).slice(0, SHOWN)}.${random}.partial`);
}

/** A file in `directory` that no one else can find, gone when it is closed. @throws what open(2) says */
export async function openScratch(directory: string): Promise<FileHandle> {
  const anonymous = await openAnonymous(directory);
  if (anonymous !== undefined) return anonymous;
  const name = temporaryName(join(directory, 'devstate'));
  const handle = await openNamed(name);
  await rm(name);
  return handle;
}
