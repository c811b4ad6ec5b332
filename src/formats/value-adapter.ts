// SPDX-License-Identifier: Apache-2.0
/** What makes the records of a standard format of the values that a device gives one by one, and takes them apart again. */
import type { FormatRecord } from './conversion/index.js';
import type { FormatVersion } from './envelope/header.js';
import type { Uuid } from './uuid.js';
import type { LeafValue } from './value-tree.js';

export interface ValueAdapter {
  /** The format whose fields the values are named after. */
  readonly uuid: Uuid;
  readonly version: FormatVersion;
  /** @throws DevstateError when the values do not make a state */
  toRecords(values: ReadonlyMap<string, LeafValue>): FormatRecord[];
  /** @throws DevstateError when the records do not make a state, or one of them is unknown and not optional */
  toValues(records: Iterable<FormatRecord>): ReadonlyMap<string, LeafValue>;
}
