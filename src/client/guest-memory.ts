// SPDX-License-Identifier: Apache-2.0
/**
 * The guest's memory as a manager on the same host can have it: mapped, from the files that the device server has it in.
 * Files are mapped whole and once; the ranges, which VMMs move about, are asked for anew by {@link MappedGuestMemory.refresh}.
 */

import { type Mapping, native, Protection } from '../native/index.js';
import type { Fd } from '../transport/index.js';
import { closeAll } from '../transport/index.js';
import { type DmaFileEntry, DmaMapFlag, indexAfter } from '../wire/index.js';
import type { MigrationClient } from './migration-client.js';

/** One ArrayBuffer cannot span terabytes. */
const WINDOW = 2 ** 30;

class MappedFile {
  readonly length: number;
  readonly #mapping: Mapping;
  readonly #windows: Uint8Array[] = [];

  constructor(mapping: Mapping) {
    this.#mapping = mapping;
    this.length = mapping.length;
  }

  /** Bytes from `offset` on, at most `length` and at least one; undefined when they cannot be had. */
  view(offset: number, length: number): Uint8Array | undefined {
    if (this.#mapping.faulted) return undefined;
    const index = Math.floor(offset / WINDOW);
    const start = offset % WINDOW;
    let window = this.#windows[index];
    if (window === undefined) {
      const buffer = this.#mapping.window(index * WINDOW, Math.min(WINDOW, this.length - index * WINDOW));
      if (typeof buffer === 'number') return undefined;
      window = new Uint8Array(buffer);
      this.#windows[index] = window;
    }
    return window.subarray(start, Math.min(start + length, window.length));
  }

  /** A part was missing when it was touched: what was read there is not what the guest has. */
  get faulted(): boolean {
    return this.#mapping.faulted;
  }

  unmap(): void {
    this.#windows.length = 0;
    this.#mapping.unmap();
  }
}

export class MappedGuestMemory {
  readonly #device: MigrationClient;
  /** By what file it is. */
  readonly #files = new Map<string, MappedFile>();
  /** In order of address: there may be 65,535, and each page that is copied asks for one. */
  #ranges: { readonly address: number; readonly entry: DmaFileEntry; readonly file: MappedFile }[] = [];
  #closed = false;

  constructor(device: MigrationClient) {
    this.#device = device;
  }

  /**
   * Asks for the ranges as they are now.
   * @returns whether any memory can be reached: not if the server is elsewhere, or does not give its files away
   */
  async refresh(): Promise<boolean> {
    const answer = await this.#device.dmaFiles();
    if (answer === undefined || this.#closed) {
      closeAll(answer?.fds ?? []);
      return false;
    }
    const files = answer.fds.map((fd) => this.#map(fd));
    closeAll(answer.fds);
    this.#ranges = answer.entries.flatMap((entry) => {
      const file = files[entry.file];
      const isInside = file !== undefined && entry.offset + entry.size <= file.length;
      return isInside ? [{ address: entry.address, entry, file }] : [];
    });
    this.#ranges.sort((a, b) => a.address - b.address);
    return this.#ranges.length > 0;
  }

  #map(fd: Fd): MappedFile | undefined {
    const stat = new Float64Array(4);
    if (native.stat(fd.number, stat) < 0) return undefined;
    const [size = 0, , device, inode] = stat;
    const key = `${device}:${inode}:${size}`;
    const known = this.#files.get(key);
    if (known !== undefined) return known;
    const mapping = size > 0 ? native.map(fd.number, 0, size, Protection.readWrite) : -1;
    if (typeof mapping === 'number') return undefined;
    const file = new MappedFile(mapping);
    this.#files.set(key, file);
    return file;
  }

  /** Guest memory itself from `address` on, at most `length` bytes; undefined where it is not mapped, or not for this. */
  view(address: number, length: number, access: 'read' | 'write'): Uint8Array | undefined {
    const flag = access === 'read' ? DmaMapFlag.READ : DmaMapFlag.WRITE;
    const range = this.#ranges[indexAfter(this.#ranges, address) - 1];
    if (range === undefined) return undefined;
    const { entry, file } = range;
    const offset = address - entry.address;
    if (offset >= entry.size || (entry.flags & flag) === 0) return undefined;
    return file.view(entry.offset + offset, Math.min(length, entry.size - offset));
  }

  /** A file was made shorter while it was in use. */
  get faulted(): boolean {
    return [...this.#files.values()].some((file) => file.faulted);
  }

  close(): void {
    this.#closed = true;
    this.#ranges = [];
    for (const file of this.#files.values()) file.unmap();
    this.#files.clear();
  }
}
