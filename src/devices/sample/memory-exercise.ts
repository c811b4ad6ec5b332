// SPDX-License-Identifier: Apache-2.0
/** What the device does with guest memory when its alarm rings: writes a pattern into two ranges and reads it back. */

import type { DeviceHost } from '../../device/index.js';

/** The pattern: a KiB of `A`, one of `B`, one of `C`, one of `D`. */
const STEP = 1024;
const STEPS = 4;
const PATTERN = Uint8Array.from({ length: STEP * STEPS }, (_, i) => 0x41 + Math.floor(i / STEP));

interface Way {
  read(address: number, target: Uint8Array): void | Promise<void>;
  write(address: number, source: Uint8Array): void | Promise<void>;
}

/**
 * The second range of guest memory directly, as far as it is mapped, so that it is for our log to tell the pages; then
 * the first by messages, which the VMM sees itself. Ranges are counted by address. Never rejects: what goes wrong is logged.
 */
export async function exerciseMemory({ memory, messages, log }: DeviceHost): Promise<void> {
  const [first, second] = memory.regions;
  const ways: [string, number | undefined, Way][] = [
    ['directly', second?.address, memory],
    ['by messages', first?.address, messages],
  ];
  for (const [how, address, way] of ways) {
    try {
      if (address === undefined) throw new Error('the VMM has not mapped as much');
      await writeAndReadBack(way, address);
      log('info', `guest memory at 0x${address.toString(16)} was written and read back ${how}`);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      log('warn', `guest memory was not written and read back ${how}: ${why}`);
    }
  }
}

/** In accesses of another size than it was written in. */
async function writeAndReadBack(way: Way, address: number): Promise<void> {
  for (let at = 0; at < PATTERN.length; at += STEP)
    await way.write(address + at, PATTERN.subarray(at, at + STEP));
  const found = new Uint8Array(PATTERN.length);
  for (let at = 0; at < found.length; at += 2 * STEP)
    await way.read(address + at, found.subarray(at, at + 2 * STEP));
  if (Buffer.compare(found, PATTERN) !== 0) throw new Error('it does not hold what was written');
}
