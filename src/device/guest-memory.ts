// SPDX-License-Identifier: Apache-2.0
/**
 * Guest memory as a device sees it: the ranges that the VMM has mapped for DMA, by the addresses that the guest uses.
 *
 * A range is mapped memory, or remote: the VMM has given no file for it, and each access is a message. `read`, `write` and
 * `pin` work with both; `view` is the short cut for mapped memory. Every write is logged as dirty, and so migrated.
 */

import { Errno, RequestError } from '../wire/index.js';

export type Access = 'read' | 'write';

export interface MemoryRange {
  /** IOVA. */
  readonly address: number;
  /** Bytes. */
  readonly length: number;
}

/** A range that the VMM has mapped. */
export interface MemoryRegion extends MemoryRange {
  readonly readable: boolean;
  readonly writable: boolean;
}

/** Guest memory held for I/O that continues after the call. */
export interface Pin {
  /** In order, together as long as the ranges asked for. Not necessarily one a range. */
  readonly buffers: Uint8Array[];
  /** Ends the hold; for `write` the data are in guest memory when it settles. Call exactly once. */
  release(): void | Promise<void>;
}

/** An address that is not mapped, or not for this kind of access. */
export class DmaFault extends RequestError {
  readonly address: number;

  constructor(address: number, length: number, access: Access) {
    super(Errno.EFAULT, `guest memory 0x${address.toString(16)}+${length} is not mapped for ${access}`);
    this.name = 'DmaFault';
    this.address = address;
  }
}

export interface GuestMemory {
  /** Changes whenever a range comes or goes: a view kept by a device is valid only while this stands still. */
  readonly generation: number;

  /** Mapped ranges in order of address. */
  readonly regions: readonly MemoryRegion[];

  /**
   * The bytes themselves, if they can be had in one piece; else undefined (use `read` and `write`).
   * Do not keep it across an await without checking `generation`. After writing, call `written`.
   * @throws DmaFault when the address is not mapped for this access at all
   */
  view(address: number, length: number, access: Access): Uint8Array | undefined;

  /** Logs a write that was made through a view. */
  written(address: number, length: number): void;

  /** Copies guest memory into `target`; a promise only when some of it is remote. @throws DmaFault */
  read(address: number, target: Uint8Array): void | Promise<void>;

  /** Copies `source` into guest memory; a promise only when some of it is remote. @throws DmaFault */
  write(address: number, source: Uint8Array): void | Promise<void>;

  /**
   * Holds ranges for asynchronous I/O: buffers of guest memory itself where it is mapped, else a copy. A range that the
   * VMM unmaps meanwhile stays until the last pin on it is released.
   * @throws DmaFault
   */
  pin(ranges: readonly MemoryRange[], access: Access): Pin | Promise<Pin>;
}
