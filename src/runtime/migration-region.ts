// SPDX-License-Identifier: Apache-2.0
/** The migration region of protocol v1 for one connection: registers in front, and the memory of its data section. */

import { DevstateError } from '../errors.js';
import { DATA_OFFSET, type LifeCycle, RegionFront } from '../migration/index.js';
import {
  check,
  checkObject,
  MAX_WINDOW_LENGTH,
  type Mapping,
  native,
  Protection,
  Seal,
} from '../native/index.js';
import type { MigrationRegionPort, ServedRegion } from '../server/index.js';
import { Fd } from '../transport/index.js';
import { MIGRATION_REGION_TYPE, PciRegion, RegionInfoFlag } from '../wire/index.js';

export interface MigrationRegionOptions {
  /** Which region it is, behind those of PCI. Default 9, where libvfio-user and SPDK had it. */
  readonly index?: number;
  /** Bytes of the data section: the longest chunk. Default 1 MiB. Whole pages if it can be mapped. */
  readonly dataSize?: number;
  /** The client may map the data section. Off by default: QEMU then writes to no region of the device without waiting. */
  readonly mapped?: boolean;
}

const DEFAULT_DATA_SIZE = 1024 * 1024;
const PAGE_SIZE = 4096;
/** QEMU takes no device of more regions. */
const MAX_REGIONS = 100;

/** @throws DevstateError DEVSTATE_E_USAGE for options that make no region */
export function requireRegionOptions(options: MigrationRegionOptions): Required<MigrationRegionOptions> {
  const { index = PciRegion.COUNT, dataSize = DEFAULT_DATA_SIZE, mapped = false } = options;
  if (!Number.isInteger(index) || index < PciRegion.COUNT || index >= MAX_REGIONS)
    throw new DevstateError('DEVSTATE_E_USAGE', `the migration region is one of 9 to 99, not ${index}`);
  const unit = mapped ? PAGE_SIZE : 1;
  if (!Number.isInteger(dataSize / unit) || dataSize < unit || dataSize > MAX_WINDOW_LENGTH) {
    const message = `the data section has ${unit} to ${MAX_WINDOW_LENGTH} bytes${mapped ? ', in whole pages' : ''}, not ${dataSize}`;
    throw new DevstateError('DEVSTATE_E_USAGE', message);
  }
  return { index, dataSize, mapped };
}

export class MigrationRegion implements MigrationRegionPort {
  readonly index: number;
  readonly #options: Required<MigrationRegionOptions>;
  readonly #front: RegionFront;
  /** Made when it is first needed: most connections migrate nothing. */
  #trapped: Uint8Array | undefined;
  #shared: { fd: Fd; mapping: Mapping; bytes: Uint8Array } | undefined;
  #description: ServedRegion | undefined;
  #closed = false;

  constructor(device: LifeCycle, options: MigrationRegionOptions) {
    this.#options = requireRegionOptions(options);
    this.index = this.#options.index;
    const { dataSize, mapped } = this.#options;
    this.#front = new RegionFront(device, { size: dataSize, shared: mapped, bytes: () => this.#bytes() });
  }

  get description(): ServedRegion {
    this.#description ??= this.#describe();
    return this.#description;
  }

  #describe(): ServedRegion {
    const { dataSize, mapped } = this.#options;
    const description = {
      size: DATA_OFFSET + dataSize,
      flags: RegionInfoFlag.READ | RegionInfoFlag.WRITE,
      type: MIGRATION_REGION_TYPE,
    };
    if (!mapped) return description;
    const areas = [{ offset: DATA_OFFSET, size: dataSize }];
    return { ...description, memory: { fd: this.#share().fd, offset: 0, areas } };
  }

  read(offset: number, target: Uint8Array): void | Promise<void> {
    return this.#front.read(offset, target);
  }

  write(offset: number, data: Uint8Array): void | Promise<void> {
    return this.#front.write(offset, data);
  }

  /** The connection is gone. */
  close(): void {
    this.#closed = true;
    this.#shared?.mapping.unmap();
    this.#shared?.fd.close();
    this.#shared = undefined;
  }

  #bytes(): Uint8Array {
    if (this.#options.mapped) return this.#share().bytes;
    this.#trapped ??= new Uint8Array(this.#options.dataSize);
    return this.#trapped;
  }

  #share(): { fd: Fd; mapping: Mapping; bytes: Uint8Array } {
    if (this.#closed) throw new DevstateError('DEVSTATE_E_INTERNAL', 'the connection of a region is gone');
    if (this.#shared !== undefined) return this.#shared;
    const { dataSize } = this.#options;
    const fd = new Fd(check(native.memfdCreate('migration region'), 'make the migration region'));
    try {
      check(native.truncate(fd.number, DATA_OFFSET + dataSize), 'size the migration region');
      // The client gets it to write to, not to take it away from under us.
      check(native.addSeals(fd.number, Seal.shrink | Seal.grow | Seal.seal), 'seal the migration region');
      const mapping = checkObject(
        native.map(fd.number, DATA_OFFSET, dataSize, Protection.readWrite),
        'map the migration region',
      );
      const bytes = new Uint8Array(checkObject(mapping.window(0, dataSize), 'reach the migration region'));
      const shared = { fd, mapping, bytes };
      this.#shared = shared;
      return shared;
    } catch (error) {
      fd.close();
      throw error;
    }
  }
}
