// SPDX-License-Identifier: Apache-2.0
/**
 * The migration data of libvfio-user's sample, which has no envelope:
 *
 *     BAR 1, 12288 bytes    of the pre-copy: never, once, or (in the v1 era) whenever it was written meanwhile
 *     BAR 1, 12288 bytes
 *     BAR 0, 8 bytes        the second since 1970 that was last written to it
 *
 * In the v1 era its client passes all of that on, in the v2 era only what is not of the pre-copy; both are taken. A
 * pre-copy that was read in part is no such stream: our own savings complete it.
 */

import type { RawState, SaveRound } from '../../device/index.js';
import { BAR0_SIZE, BAR1_SIZE, refused, type StatefulSample } from './state.js';

const FINAL_LENGTH = BAR1_SIZE + BAR0_SIZE;
/** Most pre-copies of BAR 1 that are taken: a reader in no hurry gets one for each write that it waits for. */
const MAX_AHEAD = 255;

export class SampleRawState implements RawState {
  readonly estimate = FINAL_LENGTH;
  readonly maxLength = MAX_AHEAD * BAR1_SIZE + FINAL_LENGTH;
  readonly #device: StatefulSample;

  constructor(device: StatefulSample) {
    this.#device = device;
  }

  save(round: SaveRound): Uint8Array {
    const bar1 = this.#device.bar1.slice();
    if (round === 'pre-copy') return bar1;
    const bar0 = new Uint8Array(BAR0_SIZE);
    new DataView(bar0.buffer).setBigInt64(0, this.#device.captureTimer().second, true);
    return Buffer.concat([bar1, bar0]);
  }

  load(stream: Uint8Array): void {
    const ahead = (stream.length - FINAL_LENGTH) / BAR1_SIZE;
    if (!Number.isInteger(ahead) || ahead < 0)
      throw refused(
        `it has ${stream.length} bytes, not ${FINAL_LENGTH} and whole pre-copies of ${BAR1_SIZE}`,
      );
    const final = stream.subarray(-FINAL_LENGTH);
    const second = new DataView(final.buffer, final.byteOffset).getBigInt64(BAR1_SIZE, true);
    // It does not say whether the interrupt has been: rather twice than never.
    const timer = { second, armed: second !== 0n, interrupt: false };
    this.#device.restore(final.subarray(0, BAR1_SIZE), timer);
  }
}
