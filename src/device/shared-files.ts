// SPDX-License-Identifier: Apache-2.0
/**
 * The files behind the VMM's DMA ranges, kept open so that they can be handed to a successor. A VMM maps one memory file
 * in many pieces, each with an fd of its own: one of them is enough.
 */

import type { FdStore } from '../fd-store/index.js';
import { check, native } from '../native/index.js';
import type { Fd } from '../transport/index.js';

/** A file, held by as many ranges as refer to it. */
export interface SharedFile {
  readonly fd: Fd;
  release(): void;
}

interface Entry {
  readonly fd: Fd;
  /** In the store, if there is one. */
  readonly number: number | undefined;
  readonly close: () => void;
  users: number;
}

export class SharedFiles {
  readonly #files = new Map<string, Entry>();
  readonly #store: FdStore | undefined;

  /** @param store has the files kept for a successor after a crash */
  constructor(store?: FdStore) {
    this.#store = store;
  }

  /** Files that are open. */
  get size(): number {
    return this.#files.size;
  }

  /**
   * Holds the file behind `fd`, which stays the caller's. An fd for reading only is not mistaken for one that can be
   * written, as it is only used for ranges of the same kind.
   */
  hold(fd: Fd, writable: boolean): SharedFile {
    const stat = new Float64Array(4);
    check(native.stat(fd.number, stat), 'examine the file of a DMA range');
    const [size, , device, inode] = stat;
    const key = `${device}:${inode}:${size}:${writable}`;
    let entry = this.#files.get(key);
    if (entry === undefined) {
      entry = this.#open(fd);
      this.#files.set(key, entry);
    }
    const held = entry;
    held.users++;
    return {
      fd: held.fd,
      release: () => {
        if (--held.users > 0) return;
        this.#files.delete(key);
        held.close();
      },
    };
  }

  #open(fd: Fd): Entry {
    const stored = this.#store?.keep(fd);
    if (stored === undefined) {
      const copy = fd.duplicate();
      return { fd: copy, number: undefined, close: () => copy.close(), users: 0 };
    }
    return { fd: stored.fd, number: stored.number, close: () => stored.release(), users: 0 };
  }

  /** The number under which a file that is held is in the store. */
  numberOf(fd: Fd): number | undefined {
    return [...this.#files.values()].find((entry) => entry.fd === fd)?.number;
  }
}
