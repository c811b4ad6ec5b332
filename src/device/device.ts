// SPDX-License-Identifier: Apache-2.0
/**
 * What a device author implements, and what the SDK gives in return.
 *
 * The author writes the device's own function: regions, reset, quiesce, and the list of state formats it can save and
 * load. The SDK does the rest: the vfio-user protocol, interrupts' eventfds, guest memory with dirty logging, the
 * migration state machines, the state envelope, the migration socket.
 */

import type { DeviceModel, FormatVersion, Uuid } from '../formats/index.js';
import type { BundleEntry, FdKind } from '../handoff/index.js';
import type { RawState, StateFormat } from '../migration/index.js';
import type { ServedRegion } from '../server/index.js';
import type { Fd } from '../transport/index.js';
import type { StateValue } from '../wire/index.js';
import type { GuestMemory } from './guest-memory.js';
import type { Interrupts } from './interrupts.js';
import type { PciConfigSpace } from './pci-config.js';

export type { DeviceModel, ParameterDefinition, ParameterValue } from '../formats/index.js';
export type { RawState, SaveRound, StateFormat, StateLoader, StateRecord } from '../migration/index.js';
export type { StateValue } from '../wire/index.js';

/** One BAR. Its accesses come to `Device.readRegion` and `Device.writeRegion` with `index` as the region. */
export interface Bar {
  /** 0 to 5; a 64-bit BAR takes the next index too. */
  readonly index: number;
  /** Bytes; a power of two. */
  readonly size: number;
  readonly kind: 'memory32' | 'memory64' | 'io';
  /** Memory that the VMM may map, all of the BAR or areas of it: the device sees no accesses there. It owns the fd. */
  readonly memory?: NonNullable<ServedRegion['memory']>;
}

/** Number of interrupts the device can raise, by kind. */
export interface InterruptCounts {
  /** `edge`: raised by `triggerIntx`, signalled each time. Else a level that the VMM masks until its guest has seen to it. */
  readonly intx: boolean | 'edge';
  /** MSI vectors, 0 for none. */
  readonly msi: number;
  /** MSI-X vectors, 0 for none. The capability must be in the config space. */
  readonly msix: number;
}

/** Why the device is reset: by the guest or VMM, because the VMM's connection ended, or because a load was given up. */
export type ResetReason = 'requested' | 'disconnected' | 'aborted';

/**
 * Guest memory by messages to the VMM, mapped or not: the VMM makes the access, and so knows of it. @throws RequestError
 * ENOTCONN when there is none, or what it answers
 */
export interface GuestMessages {
  read(address: number, target: Uint8Array): Promise<void>;
  write(address: number, source: Uint8Array): Promise<void>;
}

/**
 * State that survives a crash of the server. All that changes in one transaction is kept or nothing of it, and what it
 * sets off happens when it is kept: interrupts, and what `write` writes. A region access is a transaction, with its reply.
 *
 * Without a crash journal all of this happens at once.
 */
export interface HostJournal {
  /** Whether there is a journal. */
  readonly keeps: boolean;
  /** The two ends of a transaction, for what does not fit into one function. They nest. */
  begin(): void;
  end(): void;
  /** What is changed by anything but a region access: a completion, a timer. */
  transaction<T>(work: () => T): T;
  /**
   * Writes guest memory when what caused it is kept, the last 4 bytes last. For what tells the guest of something: data
   * that it is told of may be written at any time before. Some kilobytes at most in one transaction.
   */
  write(address: number, bytes: Uint8Array): void;
}

/** A device whose state survives a crash of the server. */
export interface DeviceJournal {
  /** What it keeps: names, and the most bytes of each. The same in every start of the same device. */
  readonly records: readonly { readonly name: string; readonly capacity: number }[];
  /**
   * Called at the end of every transaction: `put` those records (by index) that have changed since. Together they must be
   * all of the device's state but for its config space and what belongs to the VMM.
   */
  save(put: (record: number, bytes: Uint8Array) => void): void;
  /** Becomes what was kept, stopped: `resume` follows, and begins anew what was under way. */
  restore(get: (record: number) => Uint8Array | undefined): void;
}

/** What the SDK gives a device when it is attached. */
export interface DeviceHost {
  readonly memory: GuestMemory;
  /** For a device that wants the VMM to see what it does; all others use `memory`. */
  readonly messages: GuestMessages;
  readonly interrupts: Interrupts;
  readonly journal: HostJournal;
  /** One line for the operator; never for data. */
  log(level: 'info' | 'warn' | 'error', message: string): void;
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

/**
 * The open files of a device that its successor in another process goes on with: the very open files, so that a lock
 * held on one stays held.
 */
export interface DeviceFiles {
  /** The images among them, which have a lock with at most one holder. */
  readonly images?: readonly DeviceImage[];
  /** What goes over. The caller closes the fds, which are duplicates. `data` becomes JSON. */
  handOver(): { readonly files: readonly BundleEntry[]; readonly data: unknown };
  /**
   * Goes on with what came: `take` gives each file once. Nothing else of the device is there yet.
   * @throws when these are not the files that this device works on; what was taken is closed then
   */
  adopt(take: (name: string, kind: FdKind) => Fd, data: unknown): void;
  /** The files are another process's: close them, and do nothing else with them. */
  letGo(): void;
}

/** A file with at most one user, who holds a lock over all of it. */
export interface DeviceImage {
  readonly path: string;
  /** This process holds the lock. */
  readonly locked: boolean;
  /** Leaves byte `byte`, beyond the file's end, out of the lock that is held, and none that was left out before; undefined for none. */
  leaveOut(byte: number | undefined): void;
  /** Whether no other process has byte `byte` locked. */
  isFree(byte: number): boolean;
}

export interface Device {
  readonly model: DeviceModel;
  /** Who made this implementation, for blobs and diagnosis. */
  readonly producer: { readonly name: string; readonly version: string };
  readonly config: PciConfigSpace;
  readonly bars: readonly Bar[];
  readonly interruptCounts: InterruptCounts;
  /** In order of preference. At least one, unless there are `values`. */
  readonly formats: readonly StateFormat[];
  /** The state value by value, for a device that has no format. */
  readonly values?: DeviceValues;
  /** What a client is given, and gives, that selects none of the `formats`: for a device that copies one without them. */
  readonly rawState?: RawState;
  /** Open files, and memory that the VMM maps, if it has any. */
  readonly files?: DeviceFiles;
  /** For a device that survives a crash of its server. Its region accesses are synchronous. */
  readonly journal?: DeviceJournal;

  /** Called once before anything else. */
  attach(host: DeviceHost): void;

  /**
   * Fills `target` with the register contents at `offset` of BAR `region`. Inside the BAR is guaranteed; width and
   * alignment are the guest's. Synchronous if at all possible: a vCPU is waiting. `target` is valid until the call
   * returns or its promise settles.
   * @throws RequestError to fail the access
   */
  readRegion(region: number, offset: number, target: Uint8Array): void | Promise<void>;

  /** As `readRegion`, the other way. `data` is valid until the call returns or its promise settles. */
  writeRegion(region: number, offset: number, data: Uint8Array): void | Promise<void>;

  /** After a write to the config space has been applied to `config`: registers that do something. */
  configWritten?(offset: number, length: number): void;

  /**
   * Back to the state after power on. Ends all DMA first. Must not fail. What was handed over (`handOver`) is not taken
   * over before: as after power on, the device takes it when it first needs it.
   */
  reset(reason: ResetReason): void | Promise<void>;

  /**
   * Stops: when it settles, nothing is in flight, no DMA and no interrupt follows, and the state does not change but by
   * region accesses, which must still be taken (without effect on guest memory until `resume`). @throws to stay running
   */
  quiesce(): void | Promise<void>;

  /** Runs again after `quiesce`, or for the first time after a load: raises what interrupts are due. */
  resume(): void | Promise<void>;

  /**
   * The state is about to be read for another instance of this device: let go of what only one of the two may hold
   * (flush and unlock the image). Called quiesced; idempotent. @throws to refuse to be migrated away
   */
  handOver?(): void | Promise<void>;

  /**
   * Take that hold again or for the first time: before `resume` after a hand-over, and when a load is committed.
   * Idempotent. @throws when somebody else holds it
   */
  takeOver?(): void | Promise<void>;
}
