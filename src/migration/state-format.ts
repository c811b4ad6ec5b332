// SPDX-License-Identifier: Apache-2.0
/** What a device's representation of its state looks like to the save and load sessions. */

import type { Uuid } from '../formats/index.js';

/** One piece of a device's state. Payloads are at most `RECORD_LENGTH_MAX` bytes; larger things are split by their format. */
export interface StateRecord {
  /** The format's own number for it, from 0x10000. */
  readonly type: number;
  /** A reader that does not know the type may skip it. */
  readonly optional?: boolean;
  readonly payload: Uint8Array;
}

/** `pre-copy` while the device runs (any number of times, each yields what changed since), then once `final`, quiesced. */
export type SaveRound = 'pre-copy' | 'final';

/** A representation of the state that a device can save and load. */
export interface StateFormat {
  readonly uuid: Uuid;
  /** For instance `org.devstate.nvme.alder`. */
  readonly name: string;
  readonly version: { readonly major: number; readonly minor: number };

  /** `partial`: it does not hold all of the state. Default: `complete`. */
  readonly fidelity?: 'complete' | 'partial';

  /**
   * A saving begins: all of the state is to be sent, whatever an earlier one, given up perhaps, has sent already. A
   * format whose rounds yield only what changed must have this.
   */
  begin?(): void;

  /**
   * Yields the records of one round. Pulled as fast as the reader reads, so that state of any size streams; a payload
   * once yielded is not changed any more. A pre-copy round may be given up half way: what it has not yielded is then
   * still to be sent. @throws to fail the save: the device goes on
   */
  save(round: SaveRound): Iterable<StateRecord> | AsyncIterable<StateRecord>;

  /** About how many bytes the final round would take now. */
  estimate(): number;

  /**
   * The records of an imagined state of this device in use, with something in every list: what a successor encodes and
   * loads for practice, so that no code of the format runs for the first time while a guest waits. Loaded into a device
   * that is reset afterwards and does not run before. Default: it practises with the state of a fresh device.
   */
  practice?(): Iterable<StateRecord>;

  /** Begins to load what a producer of version `version` saved. The device is stopped. */
  load(version: { major: number; minor: number }): StateLoader;
}

/** One load in progress. Nothing of the device changes for good before `commit`. */
export interface StateLoader {
  /** `record.payload` is valid until the call returns. @throws RequestError when refused */
  record(record: StateRecord): void;
  /** All records have come, intact: check that nothing is missing, and become that state. @throws RequestError when refused */
  commit(): void | Promise<void>;
}
