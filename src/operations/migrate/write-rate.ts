// SPDX-License-Identifier: Apache-2.0
/** How fast a device writes guest memory: two looks at its DMA log, and the pages that came between them. */

import type { MigrationClient } from '../../client/index.js';
import type { PageBitmap } from '../../migration/index.js';
import { collectDirty, LOG_PAGE_SIZE } from './dirty-pages.js';

export class WriteRate {
  readonly #device: MigrationClient;
  readonly #dirty: PageBitmap;
  /** Pages that had been written at the last look, and when that was. */
  #pages = 0;
  #at: number | undefined;
  #bytesPerMs: number | undefined;

  /** @param dirty takes what the log tells */
  constructor(device: MigrationClient, dirty: PageBitmap) {
    this.#device = device;
    this.#dirty = dirty;
  }

  /** Bytes per ms between the last two looks; undefined before the second. A page that is written again counts once. */
  get bytesPerMs(): number | undefined {
    return this.#bytesPerMs;
  }

  /** Bytes that have been written so far, and must be copied. */
  get pendingBytes(): number {
    return this.#dirty.count * LOG_PAGE_SIZE;
  }

  async look(): Promise<void> {
    await collectDirty(this.#device, this.#dirty);
    const at = performance.now();
    if (this.#at !== undefined && at > this.#at)
      this.#bytesPerMs = ((this.#dirty.count - this.#pages) * LOG_PAGE_SIZE) / (at - this.#at);
    this.#pages = this.#dirty.count;
    this.#at = at;
  }

  /** What has been written until now need not be copied. */
  forget(): void {
    this.#dirty.clear();
    this.#pages = 0;
    this.#at = performance.now();
  }
}
