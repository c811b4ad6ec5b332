// SPDX-License-Identifier: Apache-2.0
/** Guest memory for tests: memory files, and a VMM's memory that is reached by messages. */

import type { DmaHandler } from '../../src/client/index.js';
import { check, native } from '../../src/native/index.js';
import type { DmaPeer } from '../../src/server/index.js';
import { Fd } from '../../src/transport/index.js';

/** A memory file of `length` bytes. */
export function memfd(length: number): Fd {
  const fd = new Fd(check(native.memfdCreate('test memory'), 'make a memory file'));
  check(native.truncate(fd.number, length), 'size a memory file');
  return fd;
}

export function eventfd(): Fd {
  return new Fd(check(native.eventfdCreate(0), 'make an eventfd'));
}

/** How often an eventfd was signalled since the last call. */
export function signals(fd: Fd): number {
  return Math.max(native.eventfdRead(fd.number), 0);
}

/** A sparse memory of any size, as the server sees it. */
export class MemoryPeer implements DmaPeer {
  readonly #pages = new Map<number, Uint8Array>();
  reads = 0;
  writes = 0;
  /** Waited for before each access as a peer. */
  before: () => Promise<void> | void = () => {};

  #copy(address: number, bytes: Uint8Array, write: boolean): void {
    for (let i = 0; i < bytes.length; i++) {
      const page = Math.floor((address + i) / 4096);
      let content = this.#pages.get(page);
      if (content === undefined) {
        content = new Uint8Array(4096);
        this.#pages.set(page, content);
      }
      const at = (address + i) % 4096;
      if (write) content[at] = bytes[i]!;
      else bytes[i] = content[at]!;
    }
  }

  bytes(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#copy(address, bytes, false);
    return bytes;
  }

  put(address: number, bytes: Uint8Array): void {
    this.#copy(address, bytes, true);
  }

  async read(address: number, target: Uint8Array): Promise<void> {
    this.reads++;
    await this.before();
    this.#copy(address, target, false);
  }

  async write(address: number, source: Uint8Array): Promise<void> {
    this.writes++;
    await this.before();
    this.#copy(address, source, true);
  }

  /** The same memory for a client, which answers at once. */
  get handler(): DmaHandler {
    return {
      read: (address, target) => {
        this.reads++;
        this.#copy(address, target, false);
      },
      write: (address, source) => {
        this.writes++;
        this.#copy(address, source, true);
      },
    };
  }
}
