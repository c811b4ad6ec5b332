// SPDX-License-Identifier: Apache-2.0
/** Memory that devices reach: a file, so that the next process can have the same, and its mapping in this one. */

import { check, checkObject, type Mapping, native, Protection } from '../native/index.js';
import { Fd } from '../transport/index.js';

export class SharedMemory {
  readonly name: string;
  readonly fd: Fd;
  /** All of it. */
  readonly mapping: Mapping;

  /** Takes a memory file. @throws DEVSTATE_E_SYSTEM when it cannot be mapped; the file is closed then */
  constructor(name: string, fd: Fd) {
    this.name = name;
    this.fd = fd;
    try {
      const stat = new Float64Array(4);
      check(native.stat(fd.number, stat), `examine the memory ${name}`);
      const what = `map the memory ${name}`;
      this.mapping = checkObject(native.map(fd.number, 0, stat[0]!, Protection.readWrite), what);
    } catch (error) {
      fd.close();
      throw error;
    }
  }

  /** A new memory file of `size` bytes, zeros. */
  static create(name: string, size: number): SharedMemory {
    const fd = new Fd(check(native.memfdCreate(name), `make the memory ${name}`));
    const result = native.truncate(fd.number, size);
    if (result < 0) fd.close();
    check(result, `make the memory ${name} ${size} bytes long`);
    return new SharedMemory(name, fd);
  }

  get size(): number {
    return this.mapping.length;
  }

  /** A part of it, as bytes of this process. */
  bytes(offset: number, length: number): Uint8Array {
    return new Uint8Array(checkObject(this.mapping.window(offset, length), `see the memory ${this.name}`));
  }

  /** What devices do through a DMA mapping of it continues: the kernel has its pages. */
  close(): void {
    this.mapping.unmap();
    this.fd.close();
  }
}
