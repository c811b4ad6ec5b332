// SPDX-License-Identifier: Apache-2.0
/**
 * The files behind the VMM's DMA ranges, kept open so that they can be handed to a successor, and their mappings. A VMM maps
 * one memory file in many pieces, each with an fd of its own: one of them is enough, and one mapping for all pieces within
 * the same {@link EXTENT} of the file. The system has a limit for either, and for mappings it is below what a VMM may ask for.
 */

import type { FdStore } from '../fd-store/index.js';
import { type Mapping, native, Protection, peerFds } from '../native/index.js';
import type { Fd } from '../transport/index.js';
import { Errno, RequestError } from '../wire/index.js';

/** Pieces of a file that do not cross a multiple of this share a mapping. */
const EXTENT = 2 ** 30;
/** The protocol's smallest page: pieces begin at a multiple of it. */
const PAGE = 4096;

/** A mapped piece of a file. */
export type Piece = Pick<Mapping, 'length' | 'window' | 'unmap'>;

/** A file, held by as many ranges as refer to it. */
export interface SharedFile {
  readonly fd: Fd;
  /** Bytes; 0 where the file does not say. */
  readonly size: number;
  /** A piece of it. To be unmapped before `release`. Call at most once. @throws RequestError */
  map(offset: number, length: number): Piece;
  release(): void;
}

/** A mapped part of a file, in which pieces are. */
interface Extent {
  readonly mapping: Mapping;
  users: number;
}

interface Entry {
  readonly fd: Fd;
  /** In the store, if there is one. */
  readonly number: number | undefined;
  readonly close: () => void;
  readonly size: number;
  readonly protection: number;
  /** By their place in the file, in units of {@link EXTENT}. */
  readonly extents: Map<number, Extent>;
  users: number;
}

export class SharedFiles {
  readonly #files = new Map<string, Entry>();
  readonly #store: FdStore | undefined;

  /** @param store has the files kept for a successor after a crash */
  constructor(store?: FdStore) {
    this.#store = store;
  }

  /** Files that are open. */
  get size(): number {
    return this.#files.size;
  }

  /**
   * Holds the file behind `fd`, which stays the caller's, for one range. An fd for reading only is not mistaken for one
   * that can be written, as it is only used for ranges of the same kind.
   * @throws RequestError EMFILE when the process cannot hold more files
   */
  hold(fd: Fd, writable: boolean): SharedFile {
    const stat = new Float64Array(4);
    const wrong = native.stat(fd.number, stat);
    if (wrong < 0) throw new RequestError(-wrong, 'the fd of a DMA range cannot be examined');
    const [size, , device, inode] = stat;
    const key = `${device}:${inode}:${size}:${writable}`;
    let entry = this.#files.get(key);
    if (entry === undefined) {
      entry = this.#open(fd, size!, writable);
      this.#files.set(key, entry);
    }
    entry.users++;
    return new Hold(entry, () => this.#files.delete(key));
  }

  #open(fd: Fd, size: number, writable: boolean): Entry {
    // The other half is for eventfds, connections and what is under way.
    const most = Math.max(4, Math.floor(peerFds() / 2));
    if (this.#files.size >= most)
      throw new RequestError(
        Errno.EMFILE,
        `DMA ranges of more than ${most} files; raise the limit of open files`,
      );
    const rest = {
      size,
      protection: writable ? Protection.readWrite : Protection.read,
      extents: new Map(),
      users: 0,
    };
    const stored = this.#store?.keep(fd);
    if (stored !== undefined)
      return { fd: stored.fd, number: stored.number, close: () => stored.release(), ...rest };
    const copy = duplicate(fd);
    return { fd: copy, number: undefined, close: () => copy.close(), ...rest };
  }

  /** The number under which a file that is held is in the store. */
  numberOf(fd: Fd): number | undefined {
    return [...this.#files.values()].find((entry) => entry.fd === fd)?.number;
  }
}

/** One range's hold on a file. */
class Hold implements SharedFile {
  readonly #entry: Entry;
  readonly #forget: () => void;
  #place: number | undefined;

  /** @param forget the file is held no more */
  constructor(entry: Entry, forget: () => void) {
    this.#entry = entry;
    this.#forget = forget;
  }

  get fd(): Fd {
    return this.#entry.fd;
  }

  get size(): number {
    return this.#entry.size;
  }

  map(offset: number, length: number): Piece {
    const { piece, place } = mapPiece(this.#entry, offset, length);
    this.#place = place;
    return piece;
  }

  release(): void {
    const entry = this.#entry;
    if (this.#place !== undefined) leaveExtent(entry, this.#place);
    if (--entry.users > 0) return;
    this.#forget();
    entry.close();
  }
}

/**
 * A piece of an extent. It becomes an object of the addon when the device touches it: a VMM maps tens of thousands of which
 * a device touches a few, and the garbage collector looks at every object of the addon each time, with the event loop held up.
 */
class ExtentPiece implements Piece {
  readonly #extent: Mapping;
  readonly #offset: number;
  readonly length: number;
  #part: Mapping | undefined;

  constructor(extent: Mapping, offset: number, length: number) {
    this.#extent = extent;
    this.#offset = offset;
    this.length = length;
  }

  window(offset: number, length: number): ArrayBuffer | number {
    if (this.#part === undefined) {
      const part = this.#extent.part(this.#offset, this.length);
      if (typeof part === 'number') return part;
      this.#part = part;
    }
    return this.#part.window(offset, length);
  }

  unmap(): number {
    return this.#part?.unmap() ?? 0;
  }
}

function duplicate(fd: Fd): Fd {
  try {
    return fd.duplicate();
  } catch (error) {
    const { errno = Errno.EMFILE } = error as { errno?: number };
    throw new RequestError(errno, 'the file of a DMA range cannot be held; raise the limit of open files');
  }
}

/** @param place of the extent that the piece is in; undefined for one that has a mapping of its own */
function mapPiece(entry: Entry, offset: number, length: number): { piece: Piece; place?: number } {
  if (offset % PAGE !== 0 || length === 0) throw cannotMap(Errno.EINVAL);
  const place = Math.floor(offset / EXTENT);
  const start = place * EXTENT;
  const end = Math.min(start + EXTENT, entry.size);
  if (offset + length <= end) {
    const extent = entry.extents.get(place) ?? openExtent(entry, place, end - start);
    if (extent !== undefined) {
      extent.users++;
      return { piece: new ExtentPiece(extent.mapping, offset - start, length), place };
    }
  }
  const mapping = native.map(entry.fd.number, offset, length, entry.protection);
  if (typeof mapping === 'number') throw cannotMap(-mapping);
  return { piece: mapping };
}

/** Undefined when so much of the file cannot be mapped: less of it may be. */
function openExtent(entry: Entry, place: number, length: number): Extent | undefined {
  const mapping = native.map(entry.fd.number, place * EXTENT, length, entry.protection);
  if (typeof mapping === 'number') return undefined;
  const extent = { mapping, users: 0 };
  entry.extents.set(place, extent);
  return extent;
}

function leaveExtent(entry: Entry, place: number): void {
  const extent = entry.extents.get(place);
  if (extent === undefined || --extent.users > 0) return;
  entry.extents.delete(place);
  extent.mapping.unmap();
}

function cannotMap(errno: number): RequestError {
  if (errno === Errno.ENOMEM)
    return new RequestError(
      errno,
      'a DMA range cannot be mapped: no more memory or mappings (vm.max_map_count)',
    );
  return new RequestError(errno, 'the fd of a DMA range cannot be mapped');
}
