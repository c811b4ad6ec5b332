// SPDX-License-Identifier: Apache-2.0
/**
 * Clears ranges of a file with fallocate(2), whose time the guest decides: a range of a fragmented image has as many extents
 * as it has blocks, and the file system frees each, with a discard if it is mounted so.
 *
 * So it is done on the thread pool in slices, one at a time for the whole file, and ranges take turns. How long a slice took
 * decides the size of the next: the file's lock is held meanwhile, and a transfer that needs it waits.
 */

import { AllocateMode, Errno, native } from '../../native/index.js';

/** `punchHole` gives the space back, `zeroRange` keeps it. */
export type ClearMode = 'punchHole' | 'zeroRange';

const MIN_SLICE = 128 * 1024;
const MAX_SLICE = 16 * 1024 * 1024;
/** A slice that took less than the first is followed by a larger one, one that took more than the second by the smallest. Ms. */
const SHORT_MS = 2;
const LONG_MS = 20;

export class RangeClearing {
  /** Asked for each slice: it may change while nothing is under way. */
  readonly #fd: () => number;
  #slice = 1024 * 1024;
  #turn: Promise<unknown> = Promise.resolve();
  #underWay = 0;

  constructor(fd: () => number) {
    this.#fd = fd;
  }

  /** Ranges are being cleared: the file's lock may be held for as long as a slice takes. */
  get underWay(): boolean {
    return this.#underWay > 0;
  }

  /**
   * @param isWanted asked before each slice; false leaves the rest as it is
   * @returns 0, or the negative errno; -EOPNOTSUPP where the file system cannot, and then nothing is changed
   */
  async clear(
    mode: ClearMode,
    position: number,
    length: number,
    isWanted: () => boolean = () => true,
  ): Promise<number> {
    this.#underWay++;
    try {
      for (let done = 0; done < length && isWanted(); ) {
        const slice = Math.min(this.#slice, length - done);
        const result = await this.#next(AllocateMode[mode], position + done, slice);
        if (result < 0 && result !== -Errno.EINTR) return result;
        if (result === 0) done += slice;
      }
      return 0;
    } finally {
      this.#underWay--;
    }
  }

  /** Clears one slice when those that were asked for before are done. */
  #next(mode: number, position: number, length: number): Promise<number> {
    const result = this.#turn.then(async () => {
      const since = performance.now();
      const result = await native.allocateLater(this.#fd(), mode, position, length);
      this.#adapt(performance.now() - since, length);
      return result;
    });
    this.#turn = result.catch(() => {});
    return result;
  }

  #adapt(ms: number, length: number): void {
    if (ms > LONG_MS) this.#slice = MIN_SLICE;
    else if (ms < SHORT_MS && length >= this.#slice) this.#slice = Math.min(MAX_SLICE, this.#slice * 2);
  }
}
