// SPDX-License-Identifier: Apache-2.0
/**
 * What a QEMU writes to its stderr while it is watched. Much of what QEMU knows about a failure (`Unknown ramblock …`) it
 * says nowhere else. It can be read if it goes to a file of this machine; of a pipe or a terminal nothing can be had.
 */

import { constants } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';

/** Most that is read: the last of it. */
const MAX_BYTES = 4096;
/** Most lines that are reported: the last ones. */
const MAX_LINES = 4;
/** What a line begins with that QEMU writes: its name, and the time if it was asked for. */
const PREFIX = /^(\S+Z )?[^\s:]*qemu[^\s:]*: /;

export class QemuOutput {
  readonly #file: FileHandle;
  /** Where the next byte that QEMU writes will be. */
  readonly #from: number;

  private constructor(file: FileHandle, from: number) {
    this.#file = file;
    this.#from = from;
  }

  /** From now on. @returns undefined if it cannot be read */
  static async watch(pid: number): Promise<QemuOutput | undefined> {
    // A process in a namespace that we do not see has no number here.
    if (pid <= 0) return undefined;
    const path = `/proc/${pid}/fd/2`;
    let file: FileHandle | undefined;
    try {
      // Opening a pipe would take bytes away from its reader.
      if (!(await stat(path)).isFile()) return undefined;
      file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
      const found = await file.stat();
      if (found.isFile()) return new QemuOutput(file, found.size);
    } catch {
      // It has ended, or is another user's.
    }
    await file?.close();
    return undefined;
  }

  /** The last lines since, without QEMU's name; empty if there are none, or the file was cut off meanwhile. */
  async lines(): Promise<string[]> {
    try {
      const { size } = await this.#file.stat();
      const from = Math.max(this.#from, size - MAX_BYTES);
      if (size <= from) return [];
      const { buffer, bytesRead } = await this.#file.read(Buffer.alloc(size - from), 0, size - from, from);
      const lines = buffer.toString('utf8', 0, bytesRead).split('\n');
      // The first one may have been cut.
      if (from > this.#from) lines.shift();
      return lines
        .map((line) => line.replace(PREFIX, '').trim())
        .filter((line) => line !== '')
        .slice(-MAX_LINES);
    } catch {
      return [];
    }
  }

  close(): void {
    this.#file.close().catch(() => {});
  }
}
