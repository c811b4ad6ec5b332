// SPDX-License-Identifier: Apache-2.0
/**
 * The store of a disk: a raw, sparse image file with at most one writer.
 *
 * The writer holds an OFD write lock over the whole file. Nothing is written without it, it is not given up while a
 * write is under way, and what was written is on stable storage before it is given up.
 */

import { close, closeSync, constants, fstatSync, ftruncateSync, openSync, readv, writev } from 'node:fs';
import type { DeviceFile, DeviceFileKind, DeviceFiles, DeviceImage } from '../../device/index.js';
import { DevstateError, type ErrorCode } from '../../errors.js';
import { check, Errno, errnoText, LockType, native, whySystem } from '../../native/index.js';
import { Fd } from '../../transport/index.js';
import { Flushing } from './flushing.js';
import { type ClearMode, RangeClearing } from './range-clearing.js';

export interface ImageOptions {
  readonly path: string;
  /** Bytes. The image is created with it when it does not exist, else must have it. */
  readonly size?: number;
  /** Take the lock at once. Without it (a migration's destination) nothing is created either. */
  readonly lock: boolean;
}

/** Buffers that one request reads into or writes from, in order. */
export type Buffers = readonly Uint8Array[];

/** What an fs call with several buffers hands to its callback. */
type VectorCall = (
  fd: number,
  buffers: Uint8Array[],
  position: number,
  callback: (error: NodeJS.ErrnoException | null, bytes: number) => void,
) => void;

/** Most buffers of one system call: IOV_MAX. */
const MAX_BUFFERS = 1024;
/** Zeros are written in pieces of this size where the file system has no call for them. */
const ZERO_CHUNK = 1024 * 1024;
/** A deallocation is a hint to the device: what is not done after this time, ms, is left undone. */
const DEALLOCATE_MS = 5000;

/** A range of the image, in bytes. */
export interface Extent {
  readonly position: number;
  readonly length: number;
}

/** Name of the image for a successor. */
const IMAGE_NAME = 'device:image';

/** What is to be said of an image that is handed over. */
interface ImageHandover {
  readonly locked: boolean;
  /** Why a flush has failed, if one has. */
  readonly flushErrno?: number | undefined;
}

export class ImageFile implements DeviceFiles, DeviceImage {
  readonly path: string;
  /** Bytes; does not change. */
  readonly size: number;
  #fd: number;
  #locked = false;
  /** Byte that the lock leaves out. */
  #leftOut: number | undefined;
  /** Reads and writes under way, and what waits for the last of them. */
  #transfers = 0;
  #onQuiet: (() => void) | undefined;
  #writing = 0;
  /** Written since the last flush that succeeded. */
  #dirty = false;
  #closed: Promise<void> | undefined;
  #canWriteNow = true;
  #canReadNow = true;
  readonly #clearing = new RangeClearing(() => this.#fd);
  readonly #flushing: Flushing;

  private constructor(path: string, fd: number, size: number) {
    this.path = path;
    this.#fd = fd;
    this.size = size;
    this.#flushing = new Flushing(
      path,
      () => this.#fd,
      () => {
        this.#dirty = this.#writing > 0;
      },
    );
  }

  /**
   * Opens or creates an image.
   * @throws DevstateError DEVSTATE_E_IMAGE_MISSING, _OPEN, _SIZE, _LOCKED
   */
  static open(options: ImageOptions): ImageFile {
    const { path } = options;
    const fd = openImage(options);
    try {
      const info = fstatSync(fd);
      if (!info.isFile()) throw imageError('DEVSTATE_E_IMAGE_OPEN', `${path} is not a regular file`);
      // Locked before it is sized, so that two creators do not meet; an image of another size is never resized.
      const image = new ImageFile(
        path,
        fd,
        info.size === 0 && options.lock ? (options.size ?? 0) : info.size,
      );
      if (options.lock) image.lock();
      if (info.size === 0 && image.size > 0) image.#resize();
      requireSize(path, image.size, options.size);
      return image;
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** Gives a new image its size. */
  #resize(): void {
    try {
      ftruncateSync(this.#fd, this.size);
    } catch (error) {
      throw imageError(
        'DEVSTATE_E_IMAGE_OPEN',
        `cannot make ${this.path} with ${this.size} bytes: ${whySystem(error)}`,
        error,
      );
    }
  }

  /** Whether this process holds the lock. */
  get locked(): boolean {
    return this.#locked;
  }

  /** Takes the lock; nothing if held. @throws DevstateError DEVSTATE_E_IMAGE_LOCKED, DEVSTATE_E_IMAGE_SIZE, DEVSTATE_E_SYSTEM */
  lock(): void {
    if (this.#locked) return;
    const result = native.setLock(this.#fd, LockType.write, 0, 0);
    if (result === -Errno.EAGAIN || result === -Errno.EACCES) {
      throw imageError(
        'DEVSTATE_E_IMAGE_LOCKED',
        `${this.path} is in use by another process: stop it, or wait until it has handed the image over`,
      );
    }
    if (result < 0) throw systemError(`lock ${this.path}`, -result);
    const { size } = fstatSync(this.#fd);
    if (size !== this.size && size !== 0) {
      native.setLock(this.#fd, LockType.unlocked, 0, 0);
      throw imageError(
        'DEVSTATE_E_IMAGE_SIZE',
        `${this.path} was resized from ${this.size} to ${size} bytes: restart`,
      );
    }
    this.#locked = true;
  }

  /** Flushes and gives up the lock; nothing if not held. No write may be under way. @throws DevstateError DEVSTATE_E_SYSTEM and keeps it */
  async unlock(): Promise<void> {
    if (!this.#locked) return;
    this.#requireNoWrites();
    if (this.#dirty || this.#flushing.failure !== undefined) await this.flush();
    if (!this.#locked) return; // another call was faster
    this.#requireNoWrites();
    const result = native.setLock(this.#fd, LockType.unlocked, 0, 0);
    if (result < 0) throw systemError(`unlock ${this.path}`, -result);
    this.#locked = false;
    this.#leftOut = undefined;
  }

  get images(): readonly DeviceImage[] {
    return [this];
  }

  leaveOut(byte: number | undefined): void {
    if (!this.#locked)
      throw imageError('DEVSTATE_E_IMAGE_LOCKED', `${this.path} is not locked by this server`);
    // Taking it in again cannot meet anybody: who wants the image wants all of it.
    if (this.#leftOut !== undefined) native.setLock(this.#fd, LockType.write, this.#leftOut, 1);
    this.#leftOut = byte;
    if (byte === undefined) return;
    const result = native.setLock(this.#fd, LockType.unlocked, byte, 1);
    if (result < 0) throw systemError(`lock a part of ${this.path}`, -result);
  }

  isFree(byte: number): boolean {
    const type = native.testLock(this.#fd, LockType.write, byte, 1);
    if (type < 0) throw systemError(`look for locks of ${this.path}`, -type);
    return type === LockType.unlocked;
  }

  get generation(): number {
    return this.#flushing.failure ?? 0;
  }

  /** The image as it goes to a successor: with its lock, if it is held. */
  exportFiles(): { files: DeviceFile[]; data: ImageHandover } {
    const fd = new Fd(check(native.duplicate(this.#fd), `duplicate ${this.path}`));
    const { failure } = this.#flushing;
    const data = { locked: this.#locked, ...(failure === undefined ? {} : { flushErrno: failure }) };
    return { files: [{ kind: 'file', name: IMAGE_NAME, fd }], data };
  }

  /**
   * Continues with the open file of a predecessor. Its lock is held by the process that has that file open, so neither may unlock
   * it from now on before the other has closed it. @throws DevstateError DEVSTATE_E_IMAGE_OPEN for another file
   */
  importFiles(take: (name: string, kind: DeviceFileKind) => Fd, data: unknown): void {
    const fd = take(IMAGE_NAME, 'file');
    const [own, theirs] = [fstatSync(this.#fd), fstatSync(fd.number)];
    if (own.dev !== theirs.dev || own.ino !== theirs.ino) {
      fd.close();
      throw imageError(
        'DEVSTATE_E_IMAGE_OPEN',
        `${this.path} is not the image of the server that is replaced: name that one`,
      );
    }
    closeSync(this.#fd);
    this.#fd = fd.release();
    // Its open file has the lock already: unless somebody else has come in between, asking again changes nothing.
    const { locked: hadLock, flushErrno } = (data ?? {}) as Partial<ImageHandover>;
    this.#locked = hadLock === true && native.setLock(this.#fd, LockType.write, 0, 0) >= 0;
    this.#flushing.adopt(typeof flushErrno === 'number' ? flushErrno : undefined);
    // The other process may have written what no one has flushed.
    this.#dirty = this.#locked;
  }

  /** Closes it without giving the lock up: a successor has the same open file. */
  relinquish(): void {
    if (this.#closed !== undefined) return;
    this.#closed = Promise.resolve();
    this.#locked = false;
    closeSync(this.#fd);
    this.#fd = -1;
  }

  /** Waits for transfers under way, flushes, unlocks, closes. */
  close(): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    // The number of a closed descriptor is reused: a late transfer would go to some other file.
    if (!this.#quiet) await new Promise<void>((resolve) => (this.#onQuiet = resolve));
    try {
      await this.unlock();
    } finally {
      const fd = this.#fd;
      this.#fd = -1;
      await new Promise<void>((resolve) => close(fd, () => resolve()));
    }
  }

  /**
   * Reads at once what the page cache holds: all of it, or false (and `buffers` may hold a part).
   * A page-cached 4 KiB costs about a microsecond this way, twenty through the thread pool. Not while a range is being
   * cleared, because that holds locks of the file for which even this would wait.
   */
  readNow(buffers: Buffers, position: number, length: number): boolean {
    if (!this.#canReadNow || this.#clearing.underWay || buffers.length > MAX_BUFFERS) return false;
    const result = native.readNow(this.#fd, buffers, position);
    if (result === -Errno.EOPNOTSUPP) this.#canReadNow = false;
    return result === length;
  }

  /** Writes at once if the file system can do so without waiting; false when some of it remains to be written. */
  writeNow(buffers: Buffers, position: number, length: number): boolean {
    this.#requireLock();
    if (!this.#canWriteNow || this.#clearing.underWay || buffers.length > MAX_BUFFERS) return false;
    this.#dirty = true;
    const result = native.writeNow(this.#fd, buffers, position);
    if (result === -Errno.EOPNOTSUPP) this.#canWriteNow = false;
    return result === length;
  }

  /** Fills `buffers`. @throws DevstateError DEVSTATE_E_SYSTEM */
  read(buffers: Buffers, position: number): Promise<void> {
    return this.#transfer(readv as VectorCall, 'read', buffers, position);
  }

  /** Writes `buffers`. @throws DevstateError DEVSTATE_E_SYSTEM */
  async write(buffers: Buffers, position: number): Promise<void> {
    this.#requireLock();
    this.#dirty = true;
    this.#writing++;
    try {
      await this.#transfer(writev as VectorCall, 'write', buffers, position);
    } finally {
      this.#endWrite();
    }
  }

  #endWrite(): void {
    this.#writing--;
    this.#dirty = true; // a flush that began meanwhile did not cover it
    this.#announceQuiet();
  }

  /** Makes a range read as zeros and gives its space back where the file system can. @returns false where it cannot */
  punchHole(position: number, length: number): Promise<boolean> {
    return this.#clear('punchHole', position, length);
  }

  /**
   * Gives the space of ranges back, as far as the file system can in a few seconds: what remains keeps its data.
   * @param isWanted asked in between; false ends it
   */
  async deallocate(extents: readonly Extent[], isWanted: () => boolean): Promise<void> {
    const end = performance.now() + DEALLOCATE_MS;
    const goOn = (): boolean => performance.now() < end && isWanted();
    for (const { position, length } of extents) {
      if (!goOn() || !(await this.#clear('punchHole', position, length, goOn))) return;
    }
  }

  /** Makes a range read as zeros and keeps its space. */
  async writeZeroes(position: number, length: number): Promise<void> {
    if (await this.#clear('zeroRange', position, length)) return;
    const zeros = new Uint8Array(Math.min(length, ZERO_CHUNK));
    for (let done = 0; done < length; done += zeros.length) {
      await this.write([zeros.subarray(0, Math.min(zeros.length, length - done))], position + done);
    }
  }

  /** Settles when every write that has completed so far is on stable storage. @throws DevstateError DEVSTATE_E_SYSTEM */
  flush(): Promise<void> {
    return this.#flushing.flush();
  }

  /** @returns false where the file system cannot @throws DevstateError DEVSTATE_E_SYSTEM */
  async #clear(
    mode: ClearMode,
    position: number,
    length: number,
    isWanted?: () => boolean,
  ): Promise<boolean> {
    this.#requireLock();
    this.#dirty = true;
    this.#writing++;
    try {
      const result = await this.#clearing.clear(mode, position, length, isWanted);
      if (result === -Errno.EOPNOTSUPP) return false;
      if (result < 0) throw systemError(`zero a range of ${this.path}`, -result);
      return true;
    } finally {
      this.#endWrite();
    }
  }

  async #transfer(call: VectorCall, verb: string, buffers: Buffers, position: number): Promise<void> {
    this.#transfers++;
    try {
      for (let rest = buffers; rest.length > 0; ) {
        const bytes = await this.#callOnce(call, verb, rest.slice(0, MAX_BUFFERS), position);
        if (bytes === 0) {
          throw imageError('DEVSTATE_E_IMAGE_SIZE', `${this.path} ends before its size: it was truncated`);
        }
        rest = after(rest, bytes);
        position += bytes;
      }
    } finally {
      this.#transfers--;
      this.#announceQuiet();
    }
  }

  #callOnce(call: VectorCall, verb: string, buffers: Uint8Array[], position: number): Promise<number> {
    return new Promise((resolve, reject) => {
      call(this.#fd, buffers, position, (error, bytes) => {
        if (error === null) resolve(bytes);
        else reject(systemError(`${verb} ${this.path}`, error.errno ?? 0, error));
      });
    });
  }

  /** A write counts until its caller's bookkeeping is done, which is after its transfer has ended. */
  get #quiet(): boolean {
    return this.#transfers === 0 && this.#writing === 0;
  }

  #announceQuiet(): void {
    if (this.#quiet) this.#onQuiet?.();
  }

  #requireNoWrites(): void {
    if (this.#writing > 0) {
      throw imageError('DEVSTATE_E_INTERNAL', `${this.path} was to be unlocked with writes under way`);
    }
  }

  #requireLock(): void {
    if (!this.#locked)
      throw imageError('DEVSTATE_E_IMAGE_LOCKED', `${this.path} written to without its lock`);
  }
}

/** What remains of `buffers` after their first `bytes`. */
function after(buffers: Buffers, bytes: number): Buffers {
  let index = 0;
  while (index < buffers.length && bytes >= buffers[index]!.length) bytes -= buffers[index++]!.length;
  const rest = buffers.slice(index);
  if (bytes > 0) rest[0] = rest[0]!.subarray(bytes);
  return rest;
}

/**
 * Checks that an image holds a namespace of this size. @throws DevstateError DEVSTATE_E_IMAGE_SIZE, DEVSTATE_E_IMAGE_BLOCK_SIZE
 */
export function requireNamespaceFits(
  image: ImageFile,
  namespace: { readonly namespace_size: number; readonly lba_size: number },
): void {
  requireSize(image.path, image.size, namespace.namespace_size);
  if (image.size % namespace.lba_size === 0) return;
  throw imageError(
    'DEVSTATE_E_IMAGE_BLOCK_SIZE',
    `${image.path} has ${image.size} bytes, not a multiple of the block size ${namespace.lba_size}: resize it or choose another lba_size`,
  );
}

function openImage(options: ImageOptions): number {
  const create = options.lock && options.size !== undefined;
  const flags = constants.O_RDWR | (create ? constants.O_CREAT : 0);
  try {
    return openSync(options.path, flags, 0o600);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' && !create) {
      throw imageError(
        'DEVSTATE_E_IMAGE_MISSING',
        options.lock
          ? `${options.path} does not exist: give a size to create it`
          : `${options.path} does not exist: an incoming device needs the image that its source uses`,
        error,
      );
    }
    throw imageError(
      'DEVSTATE_E_IMAGE_OPEN',
      `cannot open ${options.path} for reading and writing: ${whySystem(error)}`,
      error,
    );
  }
}

function requireSize(path: string, size: number, wanted: number | undefined): void {
  if (size === 0) throw imageError('DEVSTATE_E_IMAGE_SIZE', `${path} is empty: give a size to create it`);
  if (wanted === undefined || size === wanted) return;
  const problem = size < wanted ? 'too small' : 'too large';
  throw imageError(
    'DEVSTATE_E_IMAGE_SIZE',
    `${path} has ${size} bytes, ${problem} for a size of ${wanted}: name its true size`,
  );
}

function imageError(code: ErrorCode, message: string, cause?: unknown): DevstateError {
  return new DevstateError(code, message, { cause });
}

function systemError(what: string, errno: number, cause?: unknown): DevstateError {
  return new DevstateError('DEVSTATE_E_SYSTEM', `cannot ${what}: ${errnoText(errno)}`, {
    errno: Math.abs(errno),
    cause,
  });
}
