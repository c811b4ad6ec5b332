// SPDX-License-Identifier: Apache-2.0
/** The ranges of guest memory that the VMM has mapped, with their fds: for the next server, and for managers to read and write. */

import { readSync, writeSync } from 'node:fs';
import { FdKind } from '../handoff/index.js';
import type { Fd } from '../transport/index.js';
import {
  type DmaMapEntry,
  DmaMapFlag,
  type DmaMapRequest,
  DmaUnmapFlag,
  type DmaUnmapRequest,
  Errno,
  RequestError,
} from '../wire/index.js';
import type { Packer, Unpacker } from './packing.js';

export interface DmaRangeOfVmm extends DmaMapRequest {
  /** Undefined where the server reaches the memory by messages to the VMM. */
  readonly fd: Fd | undefined;
}

export interface CapturedRange extends DmaMapRequest {
  readonly hasFd: boolean;
}

export class DmaMaps {
  /** By address, in the order in which they were mapped. */
  readonly #ranges = new Map<number, DmaRangeOfVmm>();

  get ranges(): Iterable<DmaRangeOfVmm> {
    return this.#ranges.values();
  }

  get size(): number {
    return this.#ranges.size;
  }

  /** Takes `fd`. What the server has accepted overlaps nothing, so one at the same address is the same, mapped again. */
  add(request: DmaMapRequest, fd: Fd | undefined): void {
    this.#ranges.get(request.address)?.fd?.close();
    this.#ranges.set(request.address, { ...request, fd: fd?.take() });
  }

  /** Whether a range has a byte of one that is there. */
  overlaps({ address, size }: DmaMapRequest): boolean {
    for (const range of this.#ranges.values())
      if (address < range.address + range.size && range.address < address + size) return true;
    return false;
  }

  has({ address, size }: DmaUnmapRequest): boolean {
    return this.#ranges.get(address)?.size === size;
  }

  remove({ flags, address, size }: DmaUnmapRequest): void {
    if ((flags & DmaUnmapFlag.ALL) !== 0) {
      this.close();
      return;
    }
    const range = this.#ranges.get(address);
    if (range === undefined || range.size !== size) return;
    range.fd?.close();
    this.#ranges.delete(address);
  }

  /** What another relay is to have; the fds go along. */
  capture(packer: Packer): CapturedRange[] {
    return [...this.#ranges.values()].map(({ fd, ...request }, index) => {
      if (fd !== undefined) packer.add(FdKind.MEMORY, fdName(index), fd);
      return { ...request, hasFd: fd !== undefined };
    });
  }

  /** @throws DEVSTATE_E_HANDOFF_BUNDLE */
  restore(ranges: readonly CapturedRange[], unpacker: Unpacker): void {
    for (const [index, { hasFd, ...request }] of ranges.entries())
      this.add(request, hasFd ? unpacker.take(FdKind.MEMORY, fdName(index)) : undefined);
  }

  /** What a manager is told: ranges that the device can write without the VMM noticing. */
  entries(): DmaMapEntry[] {
    return [...this.#ranges.values()]
      .filter(({ fd }) => fd !== undefined)
      .map(({ address, size, flags }) => ({
        address,
        size,
        flags: flags & (DmaMapFlag.READ | DmaMapFlag.WRITE),
      }));
  }

  /** @throws RequestError EFAULT where nothing is mapped with an fd, or its file is shorter */
  read(address: number, target: Uint8Array): void {
    for (const { fd, position, start, length } of this.#pieces(address, target.length)) {
      if (readSync(fd.number, target, start, length, position) !== length)
        throw fault(address + start, length);
    }
  }

  /** @throws RequestError EFAULT where nothing is mapped with an fd, or its file cannot be written */
  write(address: number, source: Uint8Array): void {
    for (const { fd, position, start, length } of this.#pieces(address, source.length)) {
      if (writeSync(fd.number, source, start, length, position) !== length)
        throw fault(address + start, length);
    }
  }

  *#pieces(address: number, length: number) {
    for (let start = 0; start < length; ) {
      const at = address + start;
      const range = this.#find(at);
      if (range?.fd === undefined) throw fault(at, length - start);
      const piece = Math.min(length - start, range.address + range.size - at);
      yield { fd: range.fd, position: range.offset + at - range.address, start, length: piece };
      start += piece;
    }
  }

  #find(address: number): DmaRangeOfVmm | undefined {
    for (const range of this.#ranges.values())
      if (address >= range.address && address < range.address + range.size) return range;
    return undefined;
  }

  close(): void {
    for (const { fd } of this.#ranges.values()) fd?.close();
    this.#ranges.clear();
  }
}

function fdName(index: number): string {
  return `dma:${index}`;
}

function fault(address: number, length: number): RequestError {
  return new RequestError(
    Errno.EFAULT,
    `guest memory 0x${address.toString(16)}+${length} is not mapped with an fd`,
  );
}
