// SPDX-License-Identifier: Apache-2.0
/**
 * The files behind the VMM's DMA ranges, kept open so that they can be handed to a successor. A VMM maps one memory file
 * in many pieces, each with an fd of its own: one of them is enough.
 */

import { check, native } from '../native/index.js';
import type { Fd } from '../transport/index.js';

/** A file, held by as many ranges as refer to it. */
export interface SharedFile {
  readonly fd: Fd;
  release(): void;
}

interface Entry {
  readonly fd: Fd;
  users: number;
}

export class SharedFiles {
  readonly #files = new Map<string, Entry>();

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
      entry = { fd: fd.duplicate(), users: 0 };
      this.#files.set(key, entry);
    }
    const held = entry;
    held.users++;
    return {
      fd: held.fd,
      release: () => {
        if (--held.users > 0) return;
        this.#files.delete(key);
        held.fd.close();
      },
    };
  }
}
