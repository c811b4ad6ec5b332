// SPDX-License-Identifier: Apache-2.0
/** What a device writes for its guest to notice, and the journal of a server that has none. */

import type { GuestMemory, HostJournal } from '../device/index.js';

/** A guest that watches the end of what is written sees the rest when it sees that: the last 4 bytes last, and whole. */
export function writeOrdered(memory: GuestMemory, address: number, bytes: Uint8Array): void {
  try {
    const view = memory.view(address, bytes.length, 'write');
    const at = bytes.length - 4;
    if (view === undefined || at < 0 || (view.byteOffset + at) % 4 !== 0) {
      void memory.write(address, bytes);
      return;
    }
    view.set(bytes.subarray(0, at));
    const last = new DataView(bytes.buffer, bytes.byteOffset + at, 4).getInt32(0, true);
    Atomics.store(new Int32Array(view.buffer, view.byteOffset + at, 1), 0, last);
    memory.written(address, bytes.length);
  } catch {
    // The guest has taken the memory away: no one reads what was to be written there.
  }
}

/** Everything happens at once. */
export function journalOfNothing(memory: GuestMemory): HostJournal {
  return {
    keeps: false,
    begin: () => {},
    end: () => {},
    transaction: (work) => work(),
    write: (address, bytes) => writeOrdered(memory, address, bytes),
  };
}
