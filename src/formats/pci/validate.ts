// SPDX-License-Identifier: Apache-2.0
/** What the parts of a `PciFunctionState` say about each other. */

import type { PciFunctionState } from './state.js';

const CONFIG_LENGTHS: readonly number[] = [256, 4096];
const VECTOR_LENGTH = 16;
const VECTORS_MAX = 2048;

/** Why it is no state of a function, as a phrase; undefined if it is one. */
export function pciFunctionDefect(state: Partial<PciFunctionState> = {}): string | undefined {
  const { config, msixTable, msixPending } = state;
  const isBytes = (part: unknown): part is Uint8Array => part instanceof Uint8Array;
  if (!isBytes(config) || !isBytes(msixTable) || !isBytes(msixPending)) return 'a part that is not there';
  const vectors = msixTable.length / VECTOR_LENGTH;
  if (!CONFIG_LENGTHS.includes(config.length)) return `configuration space of ${config.length} bytes`;
  if (!Number.isInteger(vectors) || vectors > VECTORS_MAX)
    return `an MSI-X table of ${msixTable.length} bytes`;
  if (msixPending.length !== Math.ceil(vectors / 64) * 8) {
    return `pending bits of ${msixPending.length} bytes for ${vectors} vectors`;
  }
  return undefined;
}
