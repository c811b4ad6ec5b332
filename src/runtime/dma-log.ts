// SPDX-License-Identifier: Apache-2.0
/** The log of what a device writes to guest memory, as DMA_LOGGING has it: one at a time, of one connection. */

import { DirtyLog } from '../migration/index.js';
import { type DmaLoggingReport, type DmaLoggingStart, Errno, RequestError } from '../wire/index.js';
import type { Claim } from './claim.js';
import type { DmaTable } from './dma-table.js';

export class DmaLog {
  readonly #memory: DmaTable;
  #log: DirtyLog | undefined;
  /** Who has started it: a report forgets what it reports, so only this connection may read or stop it. */
  #owner: Claim | undefined;

  constructor(memory: DmaTable) {
    this.#memory = memory;
  }

  get isOn(): boolean {
    return this.#log !== undefined;
  }

  isOf(claim: Claim): boolean {
    return this.#owner === claim;
  }

  /** @returns bytes of a page, in force @throws RequestError EBUSY when there is a log already */
  start(claim: Claim, { pageSize, ranges }: DmaLoggingStart): number {
    if (this.isOn) throw new RequestError(Errno.EBUSY, 'DMA logging is on already');
    this.#log = new DirtyLog(pageSize, ranges);
    this.#owner = claim;
    this.#memory.setWriteLog(this.#log);
    return this.#log.pageSize;
  }

  /** @throws RequestError EBUSY when it is another connection's */
  stop(claim: Claim): void {
    if (!this.isOn) return;
    this.#requireOwner(claim);
    this.#end();
  }

  /** Sets in `bitmap` what was written since the last report. @throws RequestError as `requireOn` does */
  report(
    claim: Claim,
    { iova, length, pageSize }: DmaLoggingReport,
    bitmap: Uint8Array,
  ): void | Promise<void> {
    const done = this.requireOn(claim).report(iova, length, pageSize, bitmap);
    // What the device holds for writing may change after this report.
    if (done instanceof Promise) return done.then(() => this.#memory.markPinned());
    this.#memory.markPinned();
  }

  /** @throws RequestError EINVAL when there is no log, EBUSY when it is another connection's */
  requireOn(claim: Claim): DirtyLog {
    if (this.#log === undefined) throw new RequestError(Errno.EINVAL, 'DMA logging is off');
    this.#requireOwner(claim);
    return this.#log;
  }

  #requireOwner(claim: Claim): void {
    if (!this.isOf(claim))
      throw new RequestError(Errno.EBUSY, 'another connection logs the DMA of this device');
  }

  /** The connection is gone, and its log with it. */
  release(claim: Claim): void {
    if (this.isOf(claim)) this.#end();
  }

  #end(): void {
    this.#log = undefined;
    this.#owner = undefined;
    this.#memory.setWriteLog(undefined);
    this.#memory.setMessageWriter(undefined);
  }
}
