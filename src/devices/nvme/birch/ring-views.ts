// SPDX-License-Identifier: Apache-2.0
/** Guest memory of queues as dwords, looked up once for each state of the guest's memory map. */

import type { Access, GuestMemory } from '../../../device/index.js';
import { QUEUE_SLOTS } from './layout.js';

export class RingViews {
  readonly #views = new Array<Int32Array | undefined>(QUEUE_SLOTS).fill(undefined);
  /** The memory map that a view is of; a map that does not exist if none was looked up. */
  readonly #generations = new Float64Array(QUEUE_SLOTS).fill(-1);

  constructor(readonly access: Access) {}

  /** Undefined when the ring can only be reached by `GuestMemory.read` and `write`. @throws DmaFault */
  view(memory: GuestMemory, id: number, base: number, length: number): Int32Array | undefined {
    if (this.#generations[id] === memory.generation) return this.#views[id];
    const bytes = memory.view(base, length, this.access);
    // The guest must never see half a dword, and only aligned ones are stored whole.
    const usable = bytes !== undefined && bytes.byteOffset % 4 === 0;
    this.#views[id] = usable ? new Int32Array(bytes.buffer, bytes.byteOffset, length / 4) : undefined;
    this.#generations[id] = memory.generation;
    return this.#views[id];
  }

  /** The ring is another one from now on. */
  forget(id: number): void {
    this.#views[id] = undefined;
    this.#generations[id] = -1;
  }

  forgetAll(): void {
    this.#views.fill(undefined);
    this.#generations.fill(-1);
  }
}
