// SPDX-License-Identifier: Apache-2.0
/** The files that the VMM has its memory in, for a manager on this host: DEVSTATE_DMA_FILES. */

import type { Fd } from '../transport/index.js';
import { type DmaFileEntry, DmaMapFlag, type DmaMapsRequest } from '../wire/index.js';
import type { DmaTable } from './dma-table.js';

/**
 * Those of the ranges asked for that are mapped files, as far as they are in the first `limit` files. The fds stay where
 * they are.
 */
export function dmaFiles(
  memory: DmaTable,
  limit: number,
  { first, most }: DmaMapsRequest,
): { entries: DmaFileEntry[]; files: Fd[] } {
  const entries: DmaFileEntry[] = [];
  const files: Fd[] = [];
  for (const { address, length, readable, writable, backing } of memory.regions.slice(first, first + most)) {
    const origin = backing.kind === 'mapped' ? backing.origin : undefined;
    if (origin?.file === undefined) continue;
    let file = files.indexOf(origin.file);
    if (file < 0) {
      if (files.length >= limit) continue;
      file = files.push(origin.file) - 1;
    }
    const flags = (readable ? DmaMapFlag.READ : 0) | (writable ? DmaMapFlag.WRITE : 0);
    entries.push({ address, size: length, offset: origin.offset, flags, file });
  }
  return { entries, files };
}
