// SPDX-License-Identifier: Apache-2.0
/** Memory of a device that the VMM may map too: a memory file of a fixed size. */

import { check, checkObject, type Mapping, native, Protection, Seal } from '../../native/index.js';
import { Fd } from '../../transport/index.js';

export class SharedMemory {
  /** To be passed to the VMM; stays this object's. */
  readonly fd: Fd;
  /** The memory itself, which a VMM that has mapped it changes at any time. */
  readonly bytes: Uint8Array;
  readonly #mapping: Mapping;

  /** @param length bytes, whole pages */
  constructor(name: string, length: number) {
    this.fd = new Fd(check(native.memfdCreate(name), 'make a memory file'));
    check(native.truncate(this.fd.number, length), 'size a memory file');
    // Whoever gets the fd could else take the memory away from under us.
    check(native.addSeals(this.fd.number, Seal.shrink | Seal.grow | Seal.seal), 'seal a memory file');
    this.#mapping = checkObject(
      native.map(this.fd.number, 0, length, Protection.readWrite),
      'map a memory file',
    );
    this.bytes = new Uint8Array(checkObject(this.#mapping.window(0, length), 'reach a memory file'));
  }

  /** `bytes` are empty afterwards. */
  close(): void {
    this.#mapping.unmap();
    this.fd.close();
  }
}
