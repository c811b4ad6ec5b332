// SPDX-License-Identifier: Apache-2.0
/** The ranges of guest memory that the VMM has mapped, with their fds: for the next server, and for managers to read and write. */

import { readSync, writeSync } from 'node:fs';
import { DevstateError } from '../errors.js';
import { FdKind, packRanges, type RangeEntry, type RangeTable, unpackRanges } from '../handoff/index.js';
import { native, peerFds } from '../native/index.js';
import type { Fd } from '../transport/index.js';
import { eachInTurns } from '../turns.js';
import {
  type DmaMapEntry,
  DmaMapFlag,
  type DmaMapRequest,
  type DmaMapsRequest,
  DmaUnmapFlag,
  type DmaUnmapRequest,
  Errno,
  indexAfter,
  RequestError,
} from '../wire/index.js';
import type { Packer, Unpacker } from './packing.js';

export interface DmaRangeOfVmm extends DmaMapRequest {
  /** Undefined where the server reaches the memory by messages to the VMM. */
  readonly fd: Fd | undefined;
}

export interface CapturedRange extends DmaMapRequest {
  readonly hasFd: boolean;
  /** Index of the fd that goes along; that of the range unless given. */
  readonly file?: number;
}

/** A file, held once for all ranges of it: a VMM gives an fd with each range, and there may be more of those than fds. */
interface HeldFile {
  readonly fd: Fd;
  readonly key: string;
  users: number;
}

/** A third: two VMMs may have memory at a time, and there are eventfds, connections and messages under way. */
function maxFiles(): number {
  return Math.max(4, Math.floor(peerFds() / 3));
}

function fileKey(fd: Fd, flags: number): string {
  const stat = new Float64Array(4);
  const writable = (flags & DmaMapFlag.WRITE) !== 0;
  const known = native.stat(fd.number, stat) === 0;
  // What cannot be distinguished is held by itself.
  return known ? `${stat[2]}:${stat[3]}:${writable}` : `fd ${fd.number}`;
}

function withFlag({ file, ...request }: RangeEntry): CapturedRange {
  return file === null ? { ...request, hasFd: false } : { ...request, hasFd: true, file };
}

export class DmaMaps {
  /** By address, in the order in which they were mapped. */
  readonly #ranges = new Map<number, DmaRangeOfVmm>();
  /** In order of address: there may be tens of thousands, and every access of a manager asks for one. */
  readonly #sorted: DmaRangeOfVmm[] = [];
  /** Those of them that a manager learns of, which asks for some thousands at a time. */
  readonly #withFds: DmaRangeOfVmm[] = [];
  /** By what they are, and for what they may be used. */
  readonly #files = new Map<string, HeldFile>();
  readonly #held = new Map<Fd, HeldFile>();

  get ranges(): Iterable<DmaRangeOfVmm> {
    return this.#ranges.values();
  }

  get size(): number {
    return this.#ranges.size;
  }

  /** Takes `fd`. What the server has accepted overlaps nothing, so one at the same address is the same, mapped again. */
  add(request: DmaMapRequest, fd: Fd | undefined): void {
    const held = fd === undefined ? undefined : this.#hold(fd, request.flags);
    this.#closeFile(this.#ranges.get(request.address)?.fd);
    this.#put({ ...request, fd: held });
  }

  #put(range: DmaRangeOfVmm): void {
    const before = this.#ranges.get(range.address);
    if (before !== undefined) this.#takeOut(before);
    this.#ranges.set(range.address, range);
    putIn(this.#sorted, range);
    if (range.fd !== undefined) putIn(this.#withFds, range);
  }

  /** Whether the file of a range is held already, or this process can hold one more for this VMM. */
  canHold(fd: Fd | undefined, flags: number): boolean {
    return fd === undefined || this.#files.size < maxFiles() || this.#files.has(fileKey(fd, flags));
  }

  #hold(fd: Fd, flags: number): Fd {
    const key = fileKey(fd, flags);
    let file = this.#files.get(key);
    if (file === undefined) {
      file = { fd: fd.take(), key, users: 0 };
      this.#files.set(key, file);
      this.#held.set(file.fd, file);
    } else fd.close();
    file.users++;
    return file.fd;
  }

  /** Which file the fd of a range is of; the same for two logs that have the same file for the same use. */
  fileOf(fd: Fd): string | undefined {
    return this.#held.get(fd)?.key;
  }

  #closeFile(fd: Fd | undefined): void {
    const file = fd === undefined ? undefined : this.#held.get(fd);
    if (file === undefined || --file.users > 0) return;
    this.#files.delete(file.key);
    this.#held.delete(file.fd);
    file.fd.close();
  }

  /** Whether a range has a byte of one that is there. */
  overlaps({ address, size }: DmaMapRequest): boolean {
    const index = indexAfter(this.#sorted, address);
    const [before, after] = [this.#sorted[index - 1], this.#sorted[index]];
    if (before !== undefined && address < before.address + before.size) return true;
    return after !== undefined && after.address < address + size;
  }

  /** The range that begins at this address. */
  at(address: number): DmaRangeOfVmm | undefined {
    return this.#ranges.get(address);
  }

  has({ address, size }: DmaUnmapRequest): boolean {
    return this.#ranges.get(address)?.size === size;
  }

  remove({ flags, address, size }: DmaUnmapRequest): void {
    if ((flags & DmaUnmapFlag.ALL) !== 0) {
      for (const { fd } of this.#withFds) this.#closeFile(fd);
      this.#forgetRanges();
      return;
    }
    const range = this.#ranges.get(address);
    if (range === undefined || range.size !== size) return;
    this.#closeFile(range.fd);
    this.#takeOut(range);
  }

  #takeOut(range: DmaRangeOfVmm): void {
    this.#ranges.delete(range.address);
    takeOut(this.#sorted, range);
    if (range.fd !== undefined) takeOut(this.#withFds, range);
  }

  #forgetRanges(): void {
    this.#ranges.clear();
    this.#sorted.length = 0;
    this.#withFds.length = 0;
  }

  /** The ranges as they are now, by address, whose fds stay open until `release`, whatever is unmapped meanwhile. */
  snapshot(): { readonly ranges: readonly DmaRangeOfVmm[]; release(): void } {
    const files = [...this.#files.values()];
    for (const file of files) file.users++;
    return {
      ranges: this.#sorted.slice(),
      release: () => {
        for (const { fd } of files) this.#closeFile(fd);
      },
    };
  }

  /** What another relay is to have; the fds go along. */
  capture(packer: Packer): Promise<RangeTable<CapturedRange>> {
    const files = new Map<Fd, number>();
    const entryOf = ({ fd, ...request }: DmaRangeOfVmm, index: number): RangeEntry => {
      if (fd === undefined) return { ...request, file: null };
      const file = files.get(fd) ?? index;
      if (file === index) packer.add(FdKind.MEMORY, fdName(index), fd);
      files.set(fd, file);
      return { ...request, file };
    };
    return packRanges([...this.#ranges.values()], {
      entryOf,
      plainOf: withFlag,
      add: (kind, name, fd) => packer.addOwn(kind, name, fd),
    });
  }

  /** @throws DEVSTATE_E_HANDOFF_BUNDLE */
  async restore(captured: RangeTable<CapturedRange>, unpacker: Unpacker): Promise<void> {
    const ranges = await unpackRanges(captured, withFlag, (kind, name) => unpacker.take(kind, name));
    await eachInTurns(ranges, ({ hasFd, file: given, ...request }, index) => {
      const file = given ?? index;
      if (!hasFd) this.add(request, undefined);
      else if (file === index) this.add(request, unpacker.take(FdKind.MEMORY, fdName(index)));
      else this.#addOfFile(request, ranges[file]);
    });
  }

  /** A range of the same file as `other`, which came before. @throws DEVSTATE_E_HANDOFF_BUNDLE */
  #addOfFile(request: DmaMapRequest, other: CapturedRange | undefined): void {
    const fd = other === undefined ? undefined : this.#ranges.get(other.address)?.fd;
    const file = fd === undefined ? undefined : this.#held.get(fd);
    if (file === undefined || this.#ranges.has(request.address))
      throw new DevstateError('DEVSTATE_E_HANDOFF_BUNDLE', 'a DMA range refers to a file that did not come');
    file.users++;
    this.#put({ ...request, fd: file.fd });
  }

  /** What a manager learns, as far as it asks: ranges that the device can write without the VMM noticing. */
  entries({ first, most }: DmaMapsRequest): DmaMapEntry[] {
    return this.#withFds.slice(first, first + most).map(({ address, size, flags }) => ({
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
    const range = this.#sorted[indexAfter(this.#sorted, address) - 1];
    return range !== undefined && address < range.address + range.size ? range : undefined;
  }

  close(): void {
    for (const { fd } of this.#files.values()) fd.close();
    this.#files.clear();
    this.#held.clear();
    this.#forgetRanges();
  }
}

/** Adds a range to some that are in order of address. */
function putIn(sorted: DmaRangeOfVmm[], range: DmaRangeOfVmm): void {
  sorted.splice(indexAfter(sorted, range.address), 0, range);
}

function takeOut(sorted: DmaRangeOfVmm[], { address }: DmaRangeOfVmm): void {
  sorted.splice(indexAfter(sorted, address) - 1, 1);
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
