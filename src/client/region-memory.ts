// SPDX-License-Identifier: Apache-2.0
/** A region of a device as memory: mapped where the server lets us, reached by messages where not. */

import { DevstateError } from '../errors.js';
import { MAX_WINDOW_LENGTH, type Mapping, native, Protection } from '../native/index.js';
import type { Fd } from '../transport/index.js';
import { type RegionInfo, RegionInfoFlag } from '../wire/index.js';
import type { Requester } from './requester.js';

/** As `Client.regionInfo` gives it. */
export type RegionWithFd = RegionInfo & { fd?: Fd };

/** A part that is mapped. */
interface Area {
  readonly offset: number;
  readonly mapping: Mapping;
  readonly bytes: Uint8Array;
}

export class RegionMemory {
  readonly #client: Requester;
  readonly #index: number;
  readonly #areas: Area[] = [];

  /** Takes the region's fd. What cannot be mapped, or is not to be, is reached by messages. */
  constructor(client: Requester, { fd, ...region }: RegionWithFd, map: boolean) {
    this.#client = client;
    this.#index = region.index;
    if (fd === undefined) return;
    const all = [{ offset: 0, size: region.size }];
    const areas = (region.flags & RegionInfoFlag.MMAP) === 0 ? [] : (region.sparseAreas ?? all);
    if (map) for (const { offset, size } of areas) this.#map(fd, region, offset, size);
    fd.close();
  }

  #map(fd: Fd, region: RegionInfo, offset: number, size: number): void {
    const inside = size > 0 && size <= MAX_WINDOW_LENGTH && offset + size <= region.size;
    if (!inside) return;
    const mapping = native.map(fd.number, region.offset + offset, size, Protection.readWrite);
    if (typeof mapping === 'number') return;
    const window = mapping.window(0, size);
    if (typeof window === 'number') mapping.unmap();
    else this.#areas.push({ offset, mapping, bytes: new Uint8Array(window) });
  }

  get isMapped(): boolean {
    return this.#areas.length > 0;
  }

  close(): void {
    for (const { mapping } of this.#areas.splice(0)) mapping.unmap();
  }

  async read(offset: number, target: Uint8Array): Promise<void> {
    for (const { area, at, length } of this.#pieces(offset, target.length)) {
      const piece = target.subarray(at - offset, at - offset + length);
      if (area === undefined) await this.#client.regionRead(this.#index, at, piece);
      else {
        piece.set(area.bytes.subarray(at - area.offset, at - area.offset + length));
        requireThere(area);
      }
    }
  }

  async write(offset: number, source: Uint8Array): Promise<void> {
    for (const { area, at, length } of this.#pieces(offset, source.length)) {
      const piece = source.subarray(at - offset, at - offset + length);
      if (area === undefined) await this.#client.regionWrite(this.#index, at, piece);
      else {
        area.bytes.set(piece, at - area.offset);
        requireThere(area);
      }
    }
  }

  /** Divides an access where memory that is mapped begins or ends. */
  *#pieces(
    offset: number,
    length: number,
  ): Generator<{ area: Area | undefined; at: number; length: number }> {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const area = this.#areas.find((one) => at >= one.offset && at < one.offset + one.bytes.length);
      const next = this.#areas.map((one) => one.offset).filter((start) => start > at);
      const until =
        area === undefined ? Math.min(end, ...next) : Math.min(end, area.offset + area.bytes.length);
      yield { area, at, length: until - at };
      at = until;
    }
  }
}

/** A server that makes the file behind its region shorter has taken the data away. */
function requireThere({ mapping }: Area): void {
  if (mapping.faulted)
    throw new DevstateError('DEVSTATE_E_PROTOCOL', 'the memory behind the migration region is gone');
}
