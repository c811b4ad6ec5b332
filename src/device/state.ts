// SPDX-License-Identifier: Apache-2.0
/**
 * How the state of a device is given and taken. A device offers formats; if it has none, named values. What goes around
 * the records (the envelope, checksums, model and version) is not the device's business.
 */

import type { FormatVersion, Uuid } from '../formats/index.js';
import type { StateValue } from '../wire/index.js';

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
   * still to be sent. @throws to fail the save: the device continues
   */
  save(round: SaveRound): Iterable<StateRecord> | AsyncIterable<StateRecord>;

  /** About how many bytes the final round would take now. */
  estimate(): number;

  /**
   * The records of an imagined state of this device in use, with something in every list: what a successor encodes and
   * loads for practice, so that no code of the format runs for the first time while a guest waits. Loaded into a device
   * that is reset afterwards and does not run before. Default: it practises with the state of a fresh device.
   */
  practice?(): Iterable<StateRecord> | AsyncIterable<StateRecord>;

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

/**
 * State without an envelope, for a device that stands in for one of another make: what it saves for, and loads from, a
 * client that has not selected a format. Small: it is held in memory.
 */
export interface RawState {
  /** All bytes of one round. `pre-copy` comes at most once, while the device runs; `final` once, quiesced. */
  save(round: SaveRound): Uint8Array;
  /** About how many bytes the final round takes. */
  readonly estimate: number;
  /** Longest stream that `load` takes, bytes. */
  readonly maxLength: number;
  /**
   * Becomes the state of a whole stream, of every round that was read of it. The device is stopped.
   * @throws RequestError when refused, which changes nothing
   */
  load(stream: Uint8Array): void;
}

/**
 * The state of a device as named values, the least that a device can offer. The names are the paths of fields in the
 * schema of a standard format, so that a manager makes a stream of that format of them, and takes one apart.
 */
export interface DeviceValues {
  /** The format whose schema names the values. */
  readonly uuid: Uuid;
  readonly version: FormatVersion;
  /** All values. Called quiesced. */
  capture(): ReadonlyMap<string, StateValue>;
  /** Becomes what the values say. Called stopped. @throws RequestError when they do not make a state, which changes nothing */
  restore(values: ReadonlyMap<string, StateValue>): void;
}
