// SPDX-License-Identifier: Apache-2.0
/** What a device has for a journal when there is none. */

import type { GuestMemory, HostJournal } from '../../src/device/index.js';

export function atOnce(memory: GuestMemory): HostJournal {
  return { transaction: (work) => work(), write: (address, bytes) => void memory.write(address, bytes) };
}
