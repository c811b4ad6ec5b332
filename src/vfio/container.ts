// SPDX-License-Identifier: Apache-2.0
/** `/dev/vfio/vfio`: one IOMMU address space, and the groups that are in it. */

import { DevstateError } from '../errors.js';
import type { Fd } from '../transport/index.js';
import { call, callMemory, callStruct, type MemoryPart } from './call.js';
import { openVfio, VFIO_DIRECTORY } from './open.js';
import {
  API_VERSION,
  decodeIommuInfo,
  decodeUnmapped,
  Extension,
  encodeIommuInfo,
  encodeMapDma,
  encodeUnmapDma,
  type IommuInfo,
  MAP_DMA_SIZE,
  MAP_DMA_VADDR,
  MapDmaFlag,
  UnmapDmaFlag,
  VfioRequest,
} from './uapi/index.js';

/** What a device may do with a mapping. */
export interface DmaAccess {
  readonly read: boolean;
  readonly write: boolean;
}

/** Most bytes of an answer to GET_INFO that are asked for. */
const MAX_INFO_LENGTH = 64 * 1024;

export class Container {
  readonly fd: Fd;

  /** Takes an open `/dev/vfio/vfio` (or an iommufd, which can stand in for one). */
  constructor(fd: Fd) {
    this.fd = fd;
  }

  /** Opens one. @throws DEVSTATE_E_VFIO_ACCESS, DEVSTATE_E_VFIO when the kernel's VFIO is of another version */
  static open(path = `${VFIO_DIRECTORY}/vfio`): Container {
    const container = new Container(openVfio(path));
    try {
      const version = container.apiVersion();
      if (version === API_VERSION) return container;
      const message = `the kernel's VFIO is of version ${version}; only ${API_VERSION} is known here`;
      throw new DevstateError('DEVSTATE_E_VFIO', message);
    } catch (error) {
      container.close();
      throw error;
    }
  }

  apiVersion(): number {
    return call(this.fd.number, VfioRequest.GET_API_VERSION, 0, "ask for the version of the kernel's VFIO");
  }

  /** Some depend on the groups that are in the container at the moment. */
  has(extension: Extension): boolean {
    return call(this.fd.number, VfioRequest.CHECK_EXTENSION, extension, 'ask for an extension of VFIO') > 0;
  }

  /** Whether the mappings can be moved to another process. */
  get canUpdateAddresses(): boolean {
    return this.has(Extension.UPDATE_VADDR) && this.has(Extension.UNMAP_ALL);
  }

  /** Sets the kind of IOMMU, once, when there is a group in the container. */
  setIommu(type: Extension = Extension.TYPE1v2_IOMMU): void {
    call(this.fd.number, VfioRequest.SET_IOMMU, type, 'set the IOMMU of a container');
  }

  info(): IommuInfo {
    const ask = (length: number): IommuInfo => {
      const bytes = encodeIommuInfo(length);
      callStruct(this.fd.number, VfioRequest.IOMMU_GET_INFO, bytes, 'ask a container about its IOMMU');
      return decodeIommuInfo(bytes);
    };
    const info = ask(encodeIommuInfo().length);
    return info.argsz <= encodeIommuInfo().length ? info : ask(Math.min(info.argsz, MAX_INFO_LENGTH));
  }

  /**
   * Lets devices reach a part of this process's memory at `iova`. Its pages are pinned and counted as locked by this
   * process. BLOCKS while they are.
   * @throws DEVSTATE_E_VFIO_MEMLOCK beyond RLIMIT_MEMLOCK
   */
  mapDma(iova: number, part: MemoryPart, access: DmaAccess): void {
    const flags = (access.read ? MapDmaFlag.READ : 0) | (access.write ? MapDmaFlag.WRITE : 0);
    this.#map(flags, iova, part, `map ${part.length} bytes for DMA at ${hex(iova)}`);
  }

  /**
   * Says where a mapping's memory is in this process, after {@link invalidateAddresses}: from now on the pages are
   * counted as locked by this process. It must be the same memory.
   */
  updateAddress(iova: number, part: MemoryPart): void {
    this.#map(MapDmaFlag.VADDR, iova, part, `take the DMA mapping at ${hex(iova)} over`);
  }

  #map(flags: number, iova: number, part: MemoryPart, what: string): void {
    const bytes = encodeMapDma({ flags, iova, size: part.length });
    const place = { pointer: MAP_DMA_VADDR, length: MAP_DMA_SIZE };
    callMemory(this.fd.number, VfioRequest.IOMMU_MAP_DMA, bytes, place, part, what);
  }

  /** The mappings stay, and DMA through them; the kernel forgets where their memory is in this process. */
  invalidateAddresses(): void {
    this.#unmap(UnmapDmaFlag.VADDR | UnmapDmaFlag.ALL, 0, 0, 'release the addresses of DMA mappings');
  }

  /**
   * Ends mappings that lie wholly within the range.
   * @returns bytes that were unmapped: 0 also when the mappings are another process's
   */
  unmapDma(iova: number, size: number): number {
    return this.#unmap(0, iova, size, `unmap ${size} bytes of DMA at ${hex(iova)}`);
  }

  /** Ends all mappings. @returns bytes that were unmapped */
  unmapAll(): number {
    return this.#unmap(UnmapDmaFlag.ALL, 0, 0, 'unmap all DMA');
  }

  #unmap(flags: number, iova: number, size: number, what: string): number {
    const bytes = encodeUnmapDma({ flags, iova, size });
    callStruct(this.fd.number, VfioRequest.IOMMU_UNMAP_DMA, bytes, what);
    return decodeUnmapped(bytes);
  }

  /** With the last owner of the open file the mappings end. */
  close(): void {
    this.fd.close();
  }
}

/** `4096` → `0x1000`. */
export function hex(address: number): string {
  return `0x${address.toString(16)}`;
}
