// SPDX-License-Identifier: Apache-2.0
/**
 * A device as seen by the code that moves its state: a device server behind a migration socket, or a device of the kernel's
 * VFIO. Both have the states of migration v2 and a stream of bytes that belongs to some of them; that is all they share.
 */

import type { DeviceModel, FormatOffer } from '../formats/index.js';
import type { MigrationState, StateValue, ValueNames } from '../wire/index.js';

/** The migration protocols, of the kernel and of vfio-user alike. */
export type MigrationProtocol = 'v1' | 'v2';

/**
 * What the bytes of a stream in an offered format are: a `blob` with its envelope, or `raw`, as a device makes them that
 * knows of no envelope. It is known all the same what they are, and they are wrapped where they are kept.
 */
export type StreamKind = 'blob' | 'raw';

/** What a device says of itself, as far as every end can. */
export interface EndDescription {
  readonly model: DeviceModel;
  readonly producer: { readonly name: string; readonly version: string };
  readonly pci?: { readonly vendorId: number; readonly deviceId: number };
}

/** What is left of pre-copy, as the device estimates it. Bytes. */
export interface PrecopyInfo {
  /** Bytes to be read before the device stops: else the stop takes long. */
  readonly initial: number;
  /** Bytes that have changed since. */
  readonly dirty: number;
}

/** A state that is given and taken value by value. */
export interface ValueAccess {
  /** The format that names the values of the state, and, in STOP_COPY, their names. */
  valueNames(): Promise<ValueNames>;
  value(name: string): Promise<StateValue>;
  /** In RESUMING. */
  setValue(name: string, value: StateValue): Promise<void>;
}

/** Errors are `DevstateError`s, DEVSTATE_E_REFUSED where the device does not want to. */
export interface MigrationEnd {
  readonly protocol: MigrationProtocol;
  readonly streams: StreamKind;
  /** Bytes that a `readData` should have room for, and most of a `writeData`. */
  readonly maxChunk: number;
  /** `MigrationFlag` bits. */
  flags(): Promise<number>;
  state(): Promise<MigrationState>;
  setState(state: MigrationState): Promise<void>;
  /** How often the device has been reset, by whomever; undefined when it does not tell. */
  resets(): Promise<number | undefined>;
  /** Estimate, in bytes, of the data still to come; undefined when the device does not tell. */
  dataSize(): Promise<number | undefined>;
  /** In PRE_COPY. Undefined when the device does not tell. */
  precopyInfo(): Promise<PrecopyInfo | undefined>;
  /** Reads migration data into `target`; the number of bytes, 0 at the end (in pre-copy: for now). */
  readData(target: Uint8Array): Promise<number>;
  /** @param options.whole what v1 calls a chunk is not to be divided; v2 has none */
  writeData(bytes: Uint8Array, options?: { whole?: boolean }): Promise<void>;
  /** Undefined if the device does not say what it is. */
  description(): Promise<EndDescription | undefined>;
  /** The formats that the device saves and loads; undefined when it does not say. */
  formats(): Promise<FormatOffer[] | undefined>;
  /** Has the next saving, or loading, be of this format and no other. */
  selectFormat(
    format: Pick<FormatOffer, 'uuid' | 'version'>,
    use: 'save' | 'load',
    features?: readonly string[],
  ): Promise<void>;
  /** Undefined if the device does not give its state value by value. */
  values(): Promise<ValueAccess | undefined>;
  /** Ends what was begun; the device runs, as it was first, or as the driver leaves it. */
  reset(): Promise<void>;
  close(): void;
}
