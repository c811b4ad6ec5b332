// SPDX-License-Identifier: Apache-2.0
/** As many DMA ranges as the protocol has room for, a page each, with a page that is not mapped behind each. */

import type { Client } from '../../src/client/index.js';
import type { Fd } from '../../src/transport/index.js';
import { DmaMapFlag } from '../../src/wire/index.js';

export const PAGE = 4096;
export const MOST = 65_535;
const BATCH = 512;
export const READ_WRITE = DmaMapFlag.READ | DmaMapFlag.WRITE;

export function address(index: number): number {
  return (index + 1) * 2 * PAGE;
}

/** Maps page `i % pages` of a file at `address(i)`, for each i in order. @param fdOf gives an fd of the file, which is closed */
export async function mapAll(vmm: Client, pages: number, fdOf: (index: number) => Fd): Promise<void> {
  for (let at = 0; at < MOST; at += BATCH) {
    const batch = Array.from({ length: Math.min(BATCH, MOST - at) }, (_, i) => {
      const index = at + i;
      const request = {
        flags: READ_WRITE,
        offset: (index % pages) * PAGE,
        address: address(index),
        size: PAGE,
      };
      const fd = fdOf(index);
      return vmm.dmaMap(request, fd).finally(() => fd.close());
    });
    await Promise.all(batch);
  }
}
