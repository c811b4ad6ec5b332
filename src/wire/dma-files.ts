// SPDX-License-Identifier: Apache-2.0
/**
 * DEVSTATE_DMA_FILES, what a GET answers: the DMA ranges that are files, and the files themselves with the message.
 * The request chooses among the ranges of DEVSTATE_DMA_MAPS, as there.
 *
 *     { address u64, size u64, offset u64, flags u32, file u32 } each       file: index among the message's fds
 */

import { readU64, requireBytes, writeU64 } from './reader.js';

export const DMA_FILE_ENTRY_LENGTH = 32;

export interface DmaFileEntry {
  /** Guest-physical, bytes. */
  readonly address: number;
  readonly size: number;
  /** Where the range's first byte is in the file. */
  readonly offset: number;
  /** `DmaMapFlag` READ and WRITE. */
  readonly flags: number;
  /** Index among the fds that come with the message. */
  readonly file: number;
}

export function encodeDmaFileEntries(view: DataView, at: number, entries: readonly DmaFileEntry[]): void {
  entries.forEach((entry, index) => {
    const position = at + index * DMA_FILE_ENTRY_LENGTH;
    writeU64(view, position, entry.address);
    writeU64(view, position + 8, entry.size);
    writeU64(view, position + 16, entry.offset);
    view.setUint32(position + 24, entry.flags, true);
    view.setUint32(position + 28, entry.file, true);
  });
}

/** @throws RequestError EINVAL unless it is whole entries */
export function decodeDmaFileEntries(view: DataView, at: number, end: number): DmaFileEntry[] {
  requireBytes(view, at, end, 0, 'DEVSTATE_DMA_FILES');
  return Array.from({ length: Math.floor((end - at) / DMA_FILE_ENTRY_LENGTH) }, (_, index) => {
    const position = at + index * DMA_FILE_ENTRY_LENGTH;
    return {
      address: readU64(view, position),
      size: readU64(view, position + 8),
      offset: readU64(view, position + 16),
      flags: view.getUint32(position + 24, true),
      file: view.getUint32(position + 28, true),
    };
  });
}
