// SPDX-License-Identifier: Apache-2.0
/**
 * What a vfio-user server serves. The server speaks the protocol and checks every request against what is declared
 * here; the device behind it sees only requests that make sense. Refusals are `RequestError`s: their errno goes to the peer.
 */

import type { Fd } from '../transport/index.js';
import type {
  DmaFileEntry,
  DmaLoggingReport,
  DmaLoggingStart,
  DmaMapEntry,
  DmaMapRequest,
  DmaMapsRequest,
  DmaUnmapRequest,
  FormatSelection,
  ImagesReport,
  MigrationState,
  MmapArea,
  SetIrqs,
  StateValue,
  ValueNames,
  WireFormatOffer,
} from '../wire/index.js';
import type { DmaPeer } from './dma-peer.js';
import type { HandoffPort } from './handoff-port.js';

/** A sub-region whose accesses the client may signal on an fd instead of sending messages. */
export interface IoFd {
  readonly offset: number;
  readonly size: number;
  readonly fd: Fd;
  /** `IoFdType`. */
  readonly type: number;
  readonly flags: number;
  readonly data: bigint;
}

export interface ServedRegion {
  readonly size: number;
  /** `RegionInfoFlag` READ and WRITE; MMAP and CAPS are derived. */
  readonly flags: number;
  /** Memory that the client may map: all of the region, or its `areas`. */
  readonly memory?: { readonly fd: Fd; readonly offset: number; readonly areas?: readonly MmapArea[] };
  /** For device-specific regions. */
  readonly type?: { readonly type: number; readonly subtype: number };
  readonly ioFds?: readonly IoFd[];
}

export interface ServedIrq {
  /** `IrqInfoFlag`. */
  readonly flags: number;
  readonly count: number;
}

/** The migration region of protocol v1, as one connection sees it. */
export interface MigrationRegionPort {
  readonly index: number;
  /** What the client learns of it. */
  readonly description: ServedRegion;
  /** `offset` and `target.length` are inside the region. `target` and `data` are valid until the promise settles. */
  read(offset: number, target: Uint8Array): void | Promise<void>;
  write(offset: number, data: Uint8Array): void | Promise<void>;
}

/** A device's migration, as one connection sees it: by protocol v2, by the region of v1, or both. */
export interface MigrationPort {
  /** Whether the commands and features of protocol v2 are served. */
  readonly servesV2: boolean;
  /** For protocol v1, if it is served. */
  readonly region: MigrationRegionPort | undefined;
  /** `MigrationFlag` bits. */
  readonly flags: number;
  readonly state: MigrationState;
  /** Another number whenever a saving or a loading begins or ends, and when the device is reset. */
  readonly generation: number;
  setState(target: number): Promise<void>;
  /** Gives the device up: ERROR, until it is reset. @throws RequestError EBUSY when another connection drives it */
  breakDown(): Promise<void>;
  /** Estimate, in bytes, of what is still to be read if the device stopped now. */
  readonly dataSize: number;
  /** Up to `size` bytes of the stream, as parts that will not change. Empty when there is nothing (more). */
  read(size: number): Promise<Uint8Array[]>;
  /** `bytes` are valid until the promise settles. */
  write(bytes: Uint8Array): void | Promise<void>;
  /** @returns the page size in force */
  startLogging(start: DmaLoggingStart): number;
  stopLogging(): void;
  /** This connection logs. */
  readonly logs: boolean;
  /** This connection drives the migration, or logs. */
  readonly drives: boolean;
  /** Has the device write guest memory by messages while the log is on, so that the VMM notices; or directly again. */
  writeByMessage(on: boolean): void;
  /** Writes the bitmap of the range, and clears what it reports. A promise where that takes longer. */
  reportLogging(report: DmaLoggingReport, bitmap: Uint8Array): void | Promise<void>;
  /** Formats that the device saves and loads, in order of preference. */
  formatOffers(): WireFormatOffer[];
  /** The format of this connection's next saving or loading. @throws RequestError ENOTSUP when it is not offered */
  selectFormat(selection: FormatSelection): void;
  /** The state value by value; undefined when the device does not give it so. */
  readonly values: ValuesPort | undefined;
  /** Device reset at this connection's request. @throws RequestError EBUSY when another one drives the migration */
  reset(): Promise<void>;
  /** The connection is gone. */
  close(): void | Promise<void>;
}

/** The state of a device value by value. */
export interface ValuesPort {
  /** The format that names the values; the names only in STOP_COPY. */
  names(): ValueNames;
  /** @throws RequestError ENOENT for a name that it does not have */
  get(name: string): StateValue;
  /** Taken into account when RESUMING ends. @throws RequestError EINVAL unless the device is in RESUMING */
  set(name: string, value: StateValue): void;
}

/** The image files that a device works on, in order. */
export interface ImagesPort {
  /** @param byte beyond the end of any image, about which is asked */
  report(byte: number): ImagesReport;
  /** Has the locks that are held leave a byte out; undefined for none. @throws RequestError EBUSY when none is held */
  leaveOut(byte: number | undefined): void;
}

/** What the migration socket offers beyond migration itself. */
export interface ManagementPort {
  /** Undefined for a device that works on no image. */
  readonly images?: ImagesPort | undefined;
  /** How often the device was reset since it was made. */
  readonly resets: number;
  /** The VMM has an eventfd for INTx. */
  readonly intxAssigned: boolean;
  /** JSON text that describes the device: model, parameters, producer, formats. */
  describe(): string;
  /** Bytes a manager has left for the next one. */
  note: Uint8Array;
  /** The ranges that are asked for, in order of address. */
  dmaMaps(asked: DmaMapsRequest): DmaMapEntry[];
  /** Those of the ranges asked for that are mapped files, and at most `limit` files; the fds stay the device's. */
  dmaFiles(limit: number, asked: DmaMapsRequest): { readonly entries: DmaFileEntry[]; readonly files: Fd[] };
  /** Guest memory through the device's DMA maps. */
  readMemory(address: number, target: Uint8Array): void | Promise<void>;
  writeMemory(address: number, source: Uint8Array): void | Promise<void>;
}

/** A device whose state is in a crash journal. */
export interface RecoveryPort {
  /** Becomes what its predecessor's was at the last commit, stopped. @throws when it cannot */
  recover(): void | Promise<void>;
  /** Begins, after `recover`. */
  start(): Promise<void>;
}

export interface ServedDevice {
  /** Short name for log lines. */
  readonly name: string;
  /** `DeviceInfoFlag`. */
  readonly flags: number;
  /** By region index; `undefined` where the device has none. */
  readonly regions: readonly (ServedRegion | undefined)[];
  /** By interrupt index. */
  readonly irqs: readonly ServedIrq[];

  /** Takes `fd` if it does not throw. */
  dmaMap(request: DmaMapRequest, fd: Fd | undefined): void;
  /** Settles when nothing refers to the range any more. `DmaUnmapFlag.ALL` for every range. */
  dmaUnmap(request: DmaUnmapRequest): void | Promise<void>;
  /** Takes the fds if it does not throw. */
  setIrqs(request: SetIrqs, data: Uint8Array, fds: readonly Fd[]): void;
  /** `offset` and `target.length` are inside the region. `target` and `data` are valid until the promise settles. */
  readRegion(region: number, offset: number, target: Uint8Array): void | Promise<void>;
  writeRegion(region: number, offset: number, data: Uint8Array): void | Promise<void>;
  reset(): void | Promise<void>;

  /** A VMM has connected and agreed on a version. */
  connected(peer: DmaPeer): void;
  /** It has gone. Settles when the device is ready for the next. */
  disconnected(): void | Promise<void>;
  /** Migration for a new connection; `undefined` when the device cannot migrate. */
  openMigration(role: 'vmm' | 'manager'): MigrationPort | undefined;
  readonly management: ManagementPort;
  /** A place for the next VMM while one has the device; undefined when VMMs can only come one after the other. */
  openUnderstudy?(): Understudy;
  /** For a successor in another process; undefined when the device cannot be handed to one. */
  readonly handoff?: HandoffPort | undefined;
  /** With a crash journal; the device puts there what it changes. */
  readonly recovery?: RecoveryPort | undefined;
}

/** The device as the next VMM sees it, until it changes places with the one that has it. */
export interface Understudy extends ServedDevice {
  /** What reached it and not the device. */
  readonly absorbed: { readonly resets: number; readonly configWrites: number };
  /**
   * The device has the memory, eventfds and messages that came here, and this has those of the device. Once more undoes it.
   * @throws RequestError EBUSY unless the device is in STOP, and nothing has changed
   */
  exchange(): void;
}
