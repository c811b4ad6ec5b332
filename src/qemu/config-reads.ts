// SPDX-License-Identifier: Apache-2.0
/** Reads of configuration space for their own sake: what arrives at the device's server tells who that is. */

import { configRead, type PciLocation, type Width } from './pci-commands.js';
import type { QtestAccess, QtestCommand } from './qtest.js';

const WIDTHS: Readonly<Record<number, Width>> = { 1: 'b', 2: 'w', 4: 'l' };
/**
 * Reads per batch. QEMU takes up to 1 KiB of qtest commands at a time and carries them out without letting a vCPU in
 * between, so that a guest that runs finds the latch of its configuration ports as it left it.
 */
const BATCH = 16;

/**
 * Makes `reads` of 1, 2 or 4 aligned bytes each, in order, whether or not the VM runs.
 */
export async function makeConfigReads(
  qtest: QtestAccess,
  location: PciLocation,
  reads: readonly { readonly offset: number; readonly length: number }[],
): Promise<void> {
  const commandsOf = (batch: typeof reads): QtestCommand[] =>
    batch.flatMap(({ offset, length }) => configRead(location, offset, WIDTHS[length] ?? 'b'));
  const { config } = location;
  if (config.kind === 'ecam') {
    await qtest.run(commandsOf(reads));
    return;
  }
  const readLatch: QtestCommand = { operation: 'inl', address: config.address };
  const restore = (value: number): QtestCommand => ({ operation: 'outl', address: config.address, value });
  let [latch = 0] = await qtest.run([readLatch]);
  for (let first = 0; first < reads.length; first += BATCH) {
    const commands = commandsOf(reads.slice(first, first + BATCH));
    const [found = latch] = await qtest.run([readLatch, ...commands, restore(latch)]);
    // The guest has selected another register since we looked.
    if (found !== latch) await qtest.run([restore(found)]);
    latch = found;
  }
}
