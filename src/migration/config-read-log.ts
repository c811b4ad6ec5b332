// SPDX-License-Identifier: Apache-2.0
/**
 * The last reads of configuration space that a VMM has sent. A manager that makes reads through a VMM finds out here
 * whether they arrived, and so whether this VMM's device is the one behind this migration socket.
 */

import { CONFIG_READS_KEPT, type ConfigRead, type ConfigReads } from '../wire/index.js';

/** What a u16 can say; a read beyond it is none that a manager makes. */
const MAX_U16 = 0xffff;

/** A ring that never allocates after it was made. */
export class ConfigReadLog {
  readonly #entries = new Uint32Array(CONFIG_READS_KEPT);
  #next = 0;

  /** Notes a read of `length` bytes at `offset`, in the order of arrival. */
  note(offset: number, length: number): void {
    const entry = ((Math.min(offset, MAX_U16) << 16) | Math.min(length, MAX_U16)) >>> 0;
    this.#entries[this.#next % CONFIG_READS_KEPT] = entry;
    this.#next++;
  }

  /** The reads from number `since` on, as far as they are kept. */
  report(since: number): ConfigReads {
    const first = Math.max(Math.min(since, this.#next), this.#next - CONFIG_READS_KEPT, 0);
    const reads: ConfigRead[] = [];
    for (let number = first; number < this.#next; number++) {
      const entry = this.#entries[number % CONFIG_READS_KEPT]!;
      reads.push({ offset: entry >>> 16, length: entry & MAX_U16 });
    }
    return { next: this.#next, reads };
  }
}
