// SPDX-License-Identifier: Apache-2.0
/**
 * Memory of our own in the place of a destination's, so that the rate of copying can be measured where there is no
 * destination, or one that must not be touched.
 *
 *     mapped      a memory file, mapped in this process, as a destination's are
 *     messages    none: what would be written to the destination is read at the source once more, which costs as much
 */

import { writeSync } from 'node:fs';
import type { MigrationClient } from '../../client/index.js';
import { check, checkObject, type Mapping, native, Protection } from '../../native/index.js';
import { Fd } from '../../transport/index.js';
import type { DmaMapEntry } from '../../wire/index.js';
import { type PageCopier, type PageTarget, rehearsedLength } from './page-copy.js';

/** For errors, and for who looks at the memory of this process. */
const WHAT = 'scratch memory for the rate of copying';
/** What is written at a time to have the file's memory allocated, bytes. */
const FILL_LENGTH = 2 ** 20;

/**
 * @param range of the source's memory: this is the only one that both have, as much of it as a rehearsal copies
 * @throws DEVSTATE_E_SYSTEM
 */
export function scratchPages(
  source: MigrationClient,
  range: DmaMapEntry,
  way: PageCopier['way'],
): PageTarget {
  const { maxTransfer } = source.client;
  const memory: PageTarget['memory'] = {
    dmaMaps: () => Promise.resolve([range]),
    readMemory: () => Promise.resolve(),
    writeMemory: (address, bytes) => source.readMemory(address, new Uint8Array(bytes.length)),
  };
  const mapping =
    way === 'mapped' ? mapScratch(Math.min(range.size, rehearsedLength(maxTransfer))) : undefined;
  const bytes = mapping && new Uint8Array(checkObject(mapping.window(0, mapping.length), `reach ${WHAT}`));
  return {
    memory,
    mapped: {
      refresh: () => Promise.resolve(bytes !== undefined),
      view: (address, length) => {
        const at = address - range.address;
        return bytes !== undefined && at < bytes.length ? bytes.subarray(at, at + length) : undefined;
      },
      faulted: false,
      close: () => mapping?.unmap(),
    },
    maxTransfer,
  };
}

/** Pages of a guest's memory are there already when they are copied to, and this process has not touched them. */
function mapScratch(length: number): Mapping {
  const fd = new Fd(check(native.memfdCreate(WHAT), `make ${WHAT}`));
  try {
    const zeros = new Uint8Array(Math.min(length, FILL_LENGTH));
    for (let at = 0; at < length; )
      at += writeSync(fd.number, zeros, 0, Math.min(zeros.length, length - at), at);
    return checkObject(native.map(fd.number, 0, length, Protection.readWrite), `map ${WHAT}`);
  } finally {
    fd.close();
  }
}
