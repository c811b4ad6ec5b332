// SPDX-License-Identifier: Apache-2.0
/**
 * Fds that are kept outside of this process, so that its successor gets them. Each has a number, its name in the store.
 *
 * A manager keeps an open file once, whatever its names, so one is stored once here too: it is compared with those that
 * are there. What no one uses any more is removed with `flush`, which is called when that is certain: after a commit.
 */

import { native } from '../native/index.js';
import type { Fd } from '../transport/index.js';
import { Errno, RequestError } from '../wire/index.js';
import type { Notification } from './notify.js';
import type { Notifier } from './service.js';

/** An fd that is kept, as one of its users has it. */
export interface StoredFd {
  readonly number: number;
  /** Not to be closed: it is every user's. */
  readonly fd: Fd;
  release(): void;
}

interface Entry {
  readonly number: number;
  /** Undefined when only the store has it. */
  fd: Fd | undefined;
  users: number;
}

const NAME = /^fd-(\d+)$/;

export class FdStore {
  readonly #notifier: Notifier;
  readonly #capacity: number;
  readonly #entries = new Map<number, Entry>();
  #next = 1;
  /** Numbers that had no user when that was last looked at. */
  readonly #unused = new Set<number>();
  #lost = false;
  /** Called once, when the manager is gone: nothing more is kept, and the service continues without. */
  onLost: ((error: unknown) => void) | undefined;

  /** @param given fds that a predecessor had kept, by name; those of other names are closed */
  constructor(notifier: Notifier, capacity: number, given: Iterable<{ name: string; fd: Fd }> = []) {
    this.#notifier = notifier;
    this.#capacity = capacity;
    for (const { name, fd } of given) {
      const number = Number(NAME.exec(name)?.[1] ?? Number.NaN);
      if (!Number.isSafeInteger(number) || this.#entries.has(number)) {
        fd.close();
        continue;
      }
      this.#entries.set(number, { number, fd, users: 0 });
      this.#unused.add(number);
      this.#next = Math.max(this.#next, number + 1);
    }
  }

  /** Fds that are kept. */
  get size(): number {
    return this.#entries.size;
  }

  /** Whether a number is that of an fd that is kept. */
  has(number: number): boolean {
    return this.#entries.has(number);
  }

  /** The fd with a number; undefined where there is none, or it was moved to the caller of `take`. */
  fdOf(number: number): Fd | undefined {
    return this.#entries.get(number)?.fd;
  }

  /**
   * Keeps the open file behind `fd`, which stays the caller's.
   * @throws RequestError ENOSPC when the manager keeps no more
   */
  keep(fd: Fd): StoredFd {
    for (const entry of this.#entries.values()) {
      if (entry.fd !== undefined && native.sameFile(entry.fd.number, fd.number) === 1)
        return this.#use(entry, entry.fd);
    }
    const copy = fd.duplicate();
    try {
      const entry = this.#add(copy);
      entry.fd = copy;
      return this.#use(entry, copy);
    } catch (error) {
      copy.close();
      throw error;
    }
  }

  /** Has `fd` kept, without a duplicate here: an open file that is kept for one purpose. @returns its number */
  put(fd: Fd): number {
    const entry = this.#add(fd);
    entry.users = 1;
    return entry.number;
  }

  #add(fd: Fd): Entry {
    if (this.#entries.size >= this.#capacity)
      throw new RequestError(Errno.ENOSPC, `the supervisor keeps at most ${this.#capacity} file descriptors`);
    const number = this.#next++;
    this.#send({ kind: 'store', name: `fd-${number}` }, fd);
    const entry = { number, fd: undefined, users: 0 };
    this.#entries.set(number, entry);
    return entry;
  }

  /** Another user of an fd by its number, that of a predecessor. @throws RequestError ENOENT when it is not kept */
  reuse(number: number): StoredFd {
    const entry = this.#entries.get(number);
    if (entry?.fd === undefined) throw missing(number);
    return this.#use(entry, entry.fd);
  }

  #use(entry: Entry, fd: Fd): StoredFd {
    entry.users++;
    this.#unused.delete(entry.number);
    let released = false;
    return {
      number: entry.number,
      fd,
      release: () => {
        if (released) return;
        released = true;
        this.drop(entry.number);
      },
    };
  }

  /** Moves our fd of a predecessor's entry to the caller; the entry stays kept. @throws RequestError ENOENT */
  take(number: number): Fd {
    const entry = this.#entries.get(number);
    const fd = entry?.fd;
    if (entry === undefined || fd === undefined) throw missing(number);
    entry.fd = undefined;
    entry.users++;
    this.#unused.delete(number);
    return fd;
  }

  /** The end of `put` or `take`. */
  drop(number: number): void {
    const entry = this.#entries.get(number);
    if (entry === undefined || --entry.users > 0) return;
    this.#unused.add(number);
  }

  /** Removes what no one uses. */
  flush(): void {
    if (this.#unused.size === 0) return;
    for (const number of this.#unused) {
      const entry = this.#entries.get(number);
      this.#entries.delete(number);
      entry?.fd?.close();
      this.#send({ kind: 'remove', name: `fd-${number}` });
    }
    this.#unused.clear();
  }

  #send(notification: Notification, fd?: Fd): void {
    if (this.#lost) return;
    try {
      this.#notifier.send(notification, fd);
    } catch (error) {
      this.#lost = true;
      this.onLost?.(error);
    }
  }

  /** The end of the server, not by a crash: nothing is kept any more. */
  close(): void {
    for (const { number } of this.#entries.values()) this.#unused.add(number);
    this.flush();
  }
}

function missing(number: number): RequestError {
  return new RequestError(Errno.ENOENT, `file descriptor fd-${number} was not kept`);
}
