// SPDX-License-Identifier: Apache-2.0
/**
 * The addresses that devices see, by either interface of the kernel, and what moving them to another process takes:
 *
 *   container  Its mappings are of addresses in one process, which alone may unmap them. The giver has the kernel forget
 *              the addresses (UNMAP_DMA VADDR), the receiver tells it its own (MAP_DMA VADDR). DMA continues meanwhile.
 *   iommufd    Whoever has the file may map and unmap. Where mappings are of files, the pinned pages can be counted as
 *              the receiver's (IOAS_CHANGE_PROCESS); nothing else is to be moved.
 */

import { DevstateError } from '../errors.js';
import { type BundleEntry, FdKind } from '../handoff/index.js';
import type { MemoryPart } from './call.js';
import type { Container, DmaAccess } from './container.js';
import type { Iommufd } from './iommufd.js';
import type { SharedMemory } from './shared-memory.js';

/** A part of memory at the address that devices see it at. */
export interface DmaMapping extends DmaAccess {
  readonly iova: number;
  readonly size: number;
  readonly memory: SharedMemory;
  /** In the memory's file. */
  readonly offset: number;
}

/** What has become of the mappings with a move, in words for people; `moved` is whether the kernel knows the new process. */
export interface Rebinding {
  readonly moved: boolean;
  readonly explanation: string;
}

export interface DmaSpace {
  readonly kind: 'container' | 'iommufd';
  /** What goes over. */
  entries(): BundleEntry[];
  /** BLOCKS while the pages are pinned. @throws DEVSTATE_E_VFIO_MEMLOCK */
  map(mapping: DmaMapping): void;
  /** @returns bytes that were unmapped */
  unmap(iova: number, size: number): number;
  /** @throws DEVSTATE_E_VFIO_REBIND when another process could not continue with `mappings` */
  requireMovable(mappings: readonly DmaMapping[]): void;
  /** The giver releases `mappings`; DMA continues. */
  release(mappings: readonly DmaMapping[]): void;
  /** The giver keeps them after all. */
  keep(mappings: readonly DmaMapping[]): void;
  /** They are this process's from now on. Does not fail: it comes when there is no way back. */
  rebind(mappings: readonly DmaMapping[]): Rebinding;
  close(): void;
}

/** Name of the one fd of a space in a bundle. */
export const SPACE_NAME = 'dma';

const part = ({ memory, offset, size }: DmaMapping): MemoryPart => ({
  memory: memory.mapping,
  offset,
  length: size,
});

const NOTHING_MAPPED: Rebinding = { moved: false, explanation: 'not needed: nothing is mapped for DMA' };

export class ContainerSpace implements DmaSpace {
  readonly kind = 'container';
  readonly container: Container;

  constructor(container: Container) {
    this.container = container;
  }

  entries(): BundleEntry[] {
    return [{ kind: FdKind.VFIO_CONTAINER, name: SPACE_NAME, fd: this.container.fd }];
  }

  map(mapping: DmaMapping): void {
    this.container.mapDma(mapping.iova, part(mapping), mapping);
  }

  unmap(iova: number, size: number): number {
    return this.container.unmapDma(iova, size);
  }

  requireMovable(mappings: readonly DmaMapping[]): void {
    if (mappings.length === 0 || this.container.canUpdateAddresses) return;
    throw new DevstateError(
      'DEVSTATE_E_VFIO_REBIND',
      `the container's ${mappings.length} DMA mappings cannot be moved to another process: a mediated device is in it, ` +
        'or the kernel is older than 5.12; use iommufd',
    );
  }

  release(mappings: readonly DmaMapping[]): void {
    if (mappings.length > 0) this.container.invalidateAddresses();
  }

  keep(mappings: readonly DmaMapping[]): void {
    for (const mapping of mappings) this.container.updateAddress(mapping.iova, part(mapping));
  }

  rebind(mappings: readonly DmaMapping[]): Rebinding {
    if (mappings.length === 0) return NOTHING_MAPPED;
    const bytes = mappings.reduce((sum, { size }) => sum + size, 0);
    try {
      this.keep(mappings);
      const explanation = `${mappings.length} DMA mappings of ${bytes} bytes have addresses in this process now`;
      return { moved: true, explanation };
    } catch (error) {
      const explanation = `DMA continues, but not all mappings can be ended here: ${(error as Error).message}`;
      return { moved: false, explanation };
    }
  }

  close(): void {
    this.container.close();
  }
}

export class IommufdSpace implements DmaSpace {
  readonly kind = 'iommufd';
  readonly iommufd: Iommufd;
  /** The address space that the devices are attached to. */
  readonly ioas: number;

  constructor(iommufd: Iommufd, ioas: number) {
    this.iommufd = iommufd;
    this.ioas = ioas;
  }

  entries(): BundleEntry[] {
    return [{ kind: FdKind.IOMMUFD, name: SPACE_NAME, fd: this.iommufd.fd }];
  }

  map(mapping: DmaMapping): void {
    const { iova, size: length, memory, offset } = mapping;
    if (this.iommufd.mapFile(this.ioas, iova, { fd: memory.fd, offset, length }, mapping)) return;
    this.iommufd.map(this.ioas, iova, part(mapping), mapping);
  }

  unmap(iova: number, size: number): number {
    return this.iommufd.unmap(this.ioas, iova, size);
  }

  requireMovable(): void {}

  release(): void {}

  keep(): void {}

  rebind(mappings: readonly DmaMapping[]): Rebinding {
    if (mappings.length === 0) return NOTHING_MAPPED;
    if (this.#changeProcess())
      return { moved: true, explanation: 'the pinned memory is counted as that of this process now' };
    return {
      moved: false,
      explanation:
        'not possible here (it takes Linux 6.14, mappings of files and the right to lock as much), and not needed: the ' +
        'pages stay pinned, any process that has the iommufd may unmap them',
    };
  }

  #changeProcess(): boolean {
    try {
      return this.iommufd.changeProcess();
    } catch {
      return false;
    }
  }

  close(): void {
    this.iommufd.close();
  }
}
