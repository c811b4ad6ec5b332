// SPDX-License-Identifier: Apache-2.0
/**
 * The data file of a saving or a loading (`data_fd`): a stream without positions, whose bytes are the driver's affair.
 * It belongs to states of the device, and is dead once those are left.
 */

import { read, write } from 'node:fs';
import { promisify } from 'node:util';
import { DevstateError } from '../../errors.js';
import type { PrecopyInfo } from '../../migration/index.js';
import { Errno } from '../../native/index.js';
import type { Fd } from '../../transport/index.js';
import { errnoName, readU64 } from '../../wire/index.js';
import { callStruct } from '../call.js';
import { VfioRequest, viewOf } from '../uapi/index.js';

const readFile = promisify(read);
const writeFile = promisify(write);

/** `struct vfio_precopy_info`: argsz u32, flags u32, initial_bytes u64, dirty_bytes u64 */
const PRECOPY_INFO_LENGTH = 24;

export class DataSession {
  readonly #fd: Fd;
  /** For errors. */
  readonly #device: string;
  #busy = false;
  #closed = false;

  constructor(fd: Fd, device: string) {
    this.#fd = fd;
    this.#device = device;
  }

  /**
   * The next bytes; 0 at the end, and in pre-copy when there is nothing now. Does not block the process.
   * @throws DEVSTATE_E_REFUSED when the driver gives nothing, as when the session has ended
   */
  async read(target: Uint8Array): Promise<number> {
    try {
      const { bytesRead } = await this.#use((fd) => readFile(fd, target, 0, target.length, null));
      return bytesRead;
    } catch (error) {
      // So a driver says "for now" in pre-copy; some give no bytes instead.
      if (errnoOf(error) === Errno.ENOMSG) return 0;
      throw this.#refusal('does not give its state', error);
    }
  }

  /** @throws DEVSTATE_E_REFUSED when the driver does not want them: they are not of its making, or too many */
  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      try {
        const { bytesWritten } = await this.#use((fd) => writeFile(fd, bytes, at, bytes.length - at, null));
        at += bytesWritten;
      } catch (error) {
        throw this.#refusal('does not take this state: it is not of this driver, version and device', error);
      }
    }
  }

  /** What is left of pre-copy. @throws DEVSTATE_E_VFIO in another state */
  precopyInfo(): PrecopyInfo {
    const bytes = new Uint8Array(PRECOPY_INFO_LENGTH);
    const view = viewOf(bytes);
    view.setUint32(0, PRECOPY_INFO_LENGTH, true);
    const what = `ask what is left of the pre-copy of ${this.#device}`;
    callStruct(this.#fd.number, VfioRequest.MIG_GET_PRECOPY_INFO, bytes, what);
    return { initial: readU64(view, 8), dirty: readU64(view, 16) };
  }

  /** What is under way ends first: until then the number must not become another file's. */
  close(): void {
    this.#closed = true;
    if (!this.#busy) this.#fd.close();
  }

  async #use<T>(work: (fd: number) => Promise<T>): Promise<T> {
    this.#busy = true;
    try {
      return await work(this.#fd.number);
    } finally {
      this.#busy = false;
      if (this.#closed) this.#fd.close();
    }
  }

  #refusal(what: string, error: unknown): DevstateError {
    const errno = errnoOf(error);
    if (errno === undefined) throw error;
    const message = `${this.#device} ${what} (${errnoName(errno)})`;
    return new DevstateError('DEVSTATE_E_REFUSED', message, { cause: error, errno });
  }
}

/** Positive, of an error of a system call. */
function errnoOf(error: unknown): number | undefined {
  const { errno } = error as NodeJS.ErrnoException;
  return error instanceof DevstateError || errno === undefined ? undefined : -errno;
}
