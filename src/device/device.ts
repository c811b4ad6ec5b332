// SPDX-License-Identifier: Apache-2.0
/**
 * What a device author implements (`Device`), and what the SDK gives in return (`DeviceHost`).
 *
 * The author writes the device's own function: regions, reset, quiesce, and the list of state formats it can save and
 * load. The SDK does the rest: the vfio-user protocol, interrupts' eventfds, guest memory with dirty logging, the
 * migration state machines, the state envelope, the migration socket.
 *
 * All methods are called on the event loop that serves the VMM: none may block. A region access keeps a vCPU waiting;
 * `quiesce` and `resume` are a part of the time that a guest stands still.
 */

import type { DeviceModel } from '../formats/index.js';
import type { Fd } from '../transport/index.js';
import type { MmapArea } from '../wire/index.js';
import type { DeviceFiles } from './files.js';
import type { GuestMemory } from './guest-memory.js';
import type { Interrupts } from './interrupts.js';
import type { DeviceJournal, HostJournal } from './journal.js';
import type { PciBar, PciConfigSpace } from './pci-config.js';
import type { DeviceValues, RawState, StateFormat } from './state.js';

/** Memory of the device that the VMM may map: all of a BAR, or its `areas`. */
export interface BarMemory {
  /** The BAR's owner is its owner. */
  readonly fd: Fd;
  /** Where the BAR begins in the file. */
  readonly offset: number;
  readonly areas?: readonly MmapArea[];
}

/** One BAR. Its accesses come to `Device.readRegion` and `Device.writeRegion` with `index` as the region. */
export interface Bar extends PciBar {
  /** Memory that the VMM may map, all of the BAR or areas of it: the device sees no accesses there. It owns the fd. */
  readonly memory?: BarMemory;
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
   * Back to the state after power on. Ends all DMA first. Must not fail. What was given up (`releaseExclusive`) is not taken
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
   * The state is about to be read for another instance of this device: release what only one of the two may hold
   * (flush and unlock the image). Called quiesced; idempotent. @throws to refuse to be migrated away
   */
  releaseExclusive?(): void | Promise<void>;

  /**
   * Take that hold again or for the first time: before `resume` after a hand-over, and when a load is committed.
   * Idempotent. @throws when somebody else holds it
   */
  acquireExclusive?(): void | Promise<void>;
}
