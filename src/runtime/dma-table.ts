// SPDX-License-Identifier: Apache-2.0
/**
 * The ranges that the VMM has mapped for DMA, and the guest's memory in them.
 *
 * A range is *mapped* (its fd is mmapped: accesses are plain memory accesses) or *remote* (no fd, or one that only
 * pread/pwrite can use: accesses are asynchronous). All writes are dirty-logged here, so a device cannot forget to.
 */

import {
  type Access,
  DmaFault,
  type GuestMemory,
  type MemoryRange,
  type MemoryRegion,
  type Pin,
} from '../device/index.js';
import type { Fd } from '../transport/index.js';
import { eachInTurns } from '../turns.js';
import { Errno, indexAfter, RequestError } from '../wire/index.js';

/** Mapped ranges are seen through windows of this size, because one ArrayBuffer cannot span terabytes. */
export const WINDOW_SIZE = 2 ** 30;

/** Where a range comes from: what a successor needs to map it again. */
export interface BackingOrigin {
  /** Undefined for a range without an fd. */
  readonly file: Fd | undefined;
  /** In the file. */
  readonly offset: number;
  /** `DmaMapFlag` of the request. */
  readonly flags: number;
}

/** A range that can be touched directly. `window(n)` covers bytes `n * WINDOW_SIZE` and on. */
export interface MappedBacking {
  readonly kind: 'mapped';
  readonly origin?: BackingOrigin;
  window(index: number): Uint8Array;
  unmap(): void;
}

/** A range that is reached by messages to the VMM, or by pread and pwrite. Offsets count from the range's start. */
export interface RemoteBacking {
  readonly kind: 'remote';
  readonly origin?: BackingOrigin;
  /** The VMM does the writing and so knows of it: no log needs to. */
  readonly byVmm: boolean;
  read(offset: number, target: Uint8Array): Promise<void>;
  write(offset: number, source: Uint8Array): Promise<void>;
  unmap(): void;
}

export type Backing = MappedBacking | RemoteBacking;

/** A range, and how it is reached. */
export interface DmaRange extends MemoryRegion {
  readonly backing: Backing;
}

/** Where writes are recorded while dirty logging is on. */
export interface WriteLog {
  mark(address: number, length: number): void;
}

/** Writes by messages to the VMM, which notices them as its own. */
export interface MessageWriter {
  write(address: number, source: Uint8Array): Promise<void>;
}

interface Entry extends DmaRange {
  pins: number;
  /** Set while an unmap waits for the last pin. */
  drained?: () => void;
}

export class DmaTable implements GuestMemory {
  #regions: Entry[] = [];
  /** Of all ranges, also of those that were removed and wait for their last one. */
  #pins = 0;
  #lastHit = 0;
  #generation = 0;
  #log: WriteLog | undefined;
  #writer: MessageWriter | undefined;
  readonly #writePins = new Set<MemoryRange[]>();

  /** Changes whenever a range comes or goes: a view kept by a device is valid only while this stands still. */
  get generation(): number {
    return this.#generation;
  }

  /** Mapped ranges in order of address. */
  get regions(): readonly DmaRange[] {
    return this.#regions;
  }

  /** Records all further writes in `log`; none if undefined. */
  setWriteLog(log: WriteLog | undefined): void {
    this.#log = log;
    if (log !== undefined) this.markPinned();
  }

  /**
   * From now on writes go through `writer`, mapped memory or not, and need no log; directly again if undefined.
   * Slower, but a VMM that migrates sends what it has written itself, while the VM runs.
   */
  setMessageWriter(writer: MessageWriter | undefined): void {
    this.#writer = writer;
    this.#generation++; // views for writing are not to be used any more, or may be again
  }

  /** Marks what is pinned for writing: the device may write it at any time. Call after each report of the log. */
  markPinned(): void {
    if (this.#log === undefined) return;
    for (const ranges of this.#writePins)
      for (const range of ranges) this.#log.mark(range.address, range.length);
  }

  /** @throws RequestError EEXIST when it overlaps a range that is already there */
  add(region: DmaRange): void {
    const index = indexAfter(this.#regions, region.address);
    const before = this.#regions[index - 1];
    const after = this.#regions[index];
    if (
      (before !== undefined && before.address + before.length > region.address) ||
      (after !== undefined && region.address + region.length > after.address)
    ) {
      throw new RequestError(Errno.EEXIST, `DMA range 0x${region.address.toString(16)} overlaps another`);
    }
    this.#regions.splice(index, 0, { ...region, pins: 0 });
    this.#generation++;
  }

  /**
   * Removes the range that begins at `address` and is `length` long, when the last pin on it has been released.
   * @throws RequestError ENOENT when there is no such range
   */
  remove(address: number, length: number): void | Promise<void> {
    const index = indexAfter(this.#regions, address) - 1;
    const entry = this.#regions[index];
    if (entry === undefined || entry.address !== address || entry.length !== length) {
      throw new RequestError(Errno.ENOENT, `no DMA range 0x${address.toString(16)}+${length}`);
    }
    this.#regions.splice(index, 1);
    this.#generation++;
    return this.#release(entry);
  }

  /**
   * Removes every range: at once for the device, which faults on all of them from now on. They are unmapped in turns,
   * as there may be tens of thousands, and a range that is held with its last pin.
   */
  async clear(): Promise<void> {
    const entries = this.#regions;
    if (entries.length === 0) return;
    this.#regions = [];
    this.#generation++;
    const held: Promise<void>[] = [];
    await eachInTurns(entries, (entry) => {
      const unmapped = this.#release(entry);
      if (unmapped !== undefined) held.push(unmapped);
    });
    await Promise.all(held);
  }

  /**
   * Has the ranges of another one, and the other these. Logs and writers stay.
   * Takes no longer for tens of thousands of ranges. @throws RequestError EBUSY while a range of either is held, and nothing
   * has changed
   */
  exchange(other: DmaTable): void {
    if (this.#pins + other.#pins > 0) throw new RequestError(Errno.EBUSY, 'the device holds guest memory');
    [this.#regions, other.#regions] = [other.#regions, this.#regions];
    for (const memory of [this, other]) memory.#generation++;
  }

  /**
   * The bytes themselves, if they lie in one window of one mapped range; else undefined (use `read` and `write`).
   * Do not keep it across an await without checking `generation`. After writing, call `written`.
   * @throws DmaFault when the address is not mapped for this access at all
   */
  view(address: number, length: number, access: Access): Uint8Array | undefined {
    const entry = this.#find(address, length, access);
    if (access === 'write' && this.#writer !== undefined) return undefined;
    if (entry.backing.kind !== 'mapped' || address + length > entry.address + entry.length) return undefined;
    const offset = address - entry.address;
    const start = offset % WINDOW_SIZE;
    if (start + length > WINDOW_SIZE) return undefined;
    return entry.backing.window((offset - start) / WINDOW_SIZE).subarray(start, start + length);
  }

  /** Logs a write that was made through a view. */
  written(address: number, length: number): void {
    this.#log?.mark(address, length);
  }

  /** Copies guest memory into `target`; a promise only when some of it is remote. @throws DmaFault */
  read(address: number, target: Uint8Array): void | Promise<void> {
    const view = this.view(address, target.length, 'read');
    if (view === undefined) return this.#readRemote(address, target);
    target.set(view);
  }

  /** Copies `source` into guest memory; a promise only when some of it is remote. @throws DmaFault */
  write(address: number, source: Uint8Array): void | Promise<void> {
    const view = this.view(address, source.length, 'write');
    if (view === undefined) return this.#writeRemote(address, source);
    view.set(source);
    this.#log?.mark(address, source.length);
  }

  /**
   * Holds ranges for asynchronous I/O: buffers of guest memory itself where it is mapped, else of a bounce buffer.
   * @throws DmaFault
   */
  pin(ranges: readonly MemoryRange[], access: Access): Pin | Promise<Pin> {
    const entries: Entry[] = [];
    const buffers: Uint8Array[] = [];
    const direct = access === 'read' || this.#writer === undefined;
    for (const range of ranges) {
      if (!direct || !this.#collect(range, access, entries, buffers)) return this.#pinBounce(ranges, access);
    }
    for (const entry of entries) this.#pin(entry);
    // Copied, because the caller may reuse its array while the I/O is under way.
    const held = access === 'write' ? ranges.slice() : undefined;
    if (held !== undefined) this.#writePins.add(held);
    return {
      buffers,
      release: () => {
        if (held !== undefined) {
          this.#writePins.delete(held);
          for (const range of held) this.#log?.mark(range.address, range.length);
        }
        for (const entry of entries) this.#unpin(entry);
      },
    };
  }

  /** Adds the pieces of a range, if all of it is mapped memory. */
  #collect(range: MemoryRange, access: Access, entries: Entry[], buffers: Uint8Array[]): boolean {
    let { address } = range;
    const end = address + range.length;
    while (address < end) {
      const entry = this.#find(address, end - address, access);
      if (entry.backing.kind !== 'mapped') return false;
      const offset = address - entry.address;
      const start = offset % WINDOW_SIZE;
      const length = Math.min(end - address, entry.length - offset, WINDOW_SIZE - start);
      buffers.push(entry.backing.window((offset - start) / WINDOW_SIZE).subarray(start, start + length));
      entries.push(entry);
      address += length;
    }
    return true;
  }

  async #pinBounce(ranges: readonly MemoryRange[], access: Access): Promise<Pin> {
    const copy = ranges.slice();
    const buffers = copy.map((range) => new Uint8Array(range.length));
    if (access === 'read') {
      for (const [i, range] of copy.entries()) await this.read(range.address, buffers[i]!);
      return { buffers, release: () => {} };
    }
    for (const range of copy) this.#requireRange(range, access);
    return {
      buffers,
      release: async () => {
        for (const [i, range] of copy.entries()) await this.write(range.address, buffers[i]!);
      },
    };
  }

  #requireRange(range: MemoryRange, access: Access): void {
    const end = range.address + range.length;
    for (let address = range.address; address < end; ) {
      const entry = this.#find(address, end - address, access);
      address = entry.address + entry.length;
    }
  }

  async #readRemote(address: number, target: Uint8Array): Promise<void> {
    for (const piece of this.#pieces(address, target, 'read')) {
      const { backing } = piece.entry;
      if (backing.kind === 'mapped')
        piece.bytes.set(backing.window(piece.window).subarray(piece.start, piece.start + piece.bytes.length));
      else await this.#hold(piece.entry, backing.read(piece.offset, piece.bytes));
    }
  }

  async #writeRemote(address: number, source: Uint8Array): Promise<void> {
    for (const piece of this.#pieces(address, source, 'write')) {
      const { backing } = piece.entry;
      const writer = this.#writer;
      if (writer !== undefined) {
        await this.#hold(piece.entry, writer.write(piece.entry.address + piece.offset, piece.bytes));
        continue;
      }
      try {
        if (backing.kind === 'mapped') backing.window(piece.window).set(piece.bytes, piece.start);
        else await this.#hold(piece.entry, backing.write(piece.offset, piece.bytes));
      } finally {
        // A part of a write that failed may have arrived.
        if (backing.kind === 'mapped' || !backing.byVmm) {
          this.#log?.mark(piece.entry.address + piece.offset, piece.bytes.length);
        }
      }
    }
  }

  /** Splits an access at the borders of ranges and windows. Looks each piece up when it is reached: ranges may change meanwhile. */
  *#pieces(address: number, bytes: Uint8Array, access: Access) {
    for (let done = 0; done < bytes.length; ) {
      const entry = this.#find(address + done, bytes.length - done, access);
      const offset = address + done - entry.address;
      const start = offset % WINDOW_SIZE;
      const length = Math.min(bytes.length - done, entry.length - offset, WINDOW_SIZE - start);
      yield {
        entry,
        offset,
        start,
        window: (offset - start) / WINDOW_SIZE,
        bytes: bytes.subarray(done, done + length),
      };
      done += length;
    }
  }

  #find(address: number, length: number, access: Access): Entry {
    let entry = this.#regions[this.#lastHit];
    if (entry === undefined || address < entry.address || address >= entry.address + entry.length) {
      this.#lastHit = indexAfter(this.#regions, address) - 1;
      entry = this.#regions[this.#lastHit];
      if (entry === undefined || address >= entry.address + entry.length)
        throw new DmaFault(address, length, access);
    }
    if (access === 'read' ? !entry.readable : !entry.writable) throw new DmaFault(address, length, access);
    return entry;
  }

  #pin(entry: Entry): void {
    entry.pins++;
    this.#pins++;
  }

  #unpin(entry: Entry): void {
    entry.pins--;
    this.#pins--;
    if (entry.pins === 0) entry.drained?.();
  }

  /** Keeps the range mapped until the transfer is over. */
  async #hold(entry: Entry, transfer: Promise<void>): Promise<void> {
    this.#pin(entry);
    try {
      await transfer;
    } finally {
      this.#unpin(entry);
    }
  }

  /** Unmaps a range that has been taken out: now, or with its last pin. */
  #release(entry: Entry): void | Promise<void> {
    if (entry.pins === 0) return entry.backing.unmap();
    return new Promise((resolve) => {
      entry.drained = () => {
        entry.backing.unmap();
        resolve();
      };
    });
  }
}
