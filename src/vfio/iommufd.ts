// SPDX-License-Identifier: Apache-2.0
/** `/dev/iommu`: address spaces (IOAS), to which devices are attached that were opened by files of their own. */

import { Errno, native } from '../native/index.js';
import type { Fd } from '../transport/index.js';
import { callMemory, callStruct, type MemoryPart, vfioError } from './call.js';
import { type DmaAccess, hex } from './container.js';
import { openVfio } from './open.js';
import {
  decodeIoasAlloc,
  decodeIoasUnmapped,
  decodeIovaRangeArray,
  decodeIovaRanges,
  encodeChangeProcess,
  encodeDestroy,
  encodeIoasAlloc,
  encodeIoasMap,
  encodeIoasMapFile,
  encodeIoasUnmap,
  encodeIovaRanges,
  IOAS_MAP_ADDRESS,
  IOAS_MAP_SIZE,
  IOVA_RANGE_LENGTH,
  IOVA_RANGES_POINTER,
  IoasMapFlag,
  IommufdRequest,
  type IovaRange,
} from './uapi/index.js';

/** Most ranges of addresses that are asked for. */
const MAX_RANGES = 256;

/** A part of a file that is mapped for DMA. */
export interface FilePart {
  readonly fd: Fd;
  readonly offset: number;
  readonly length: number;
}

export class Iommufd {
  readonly fd: Fd;

  constructor(fd: Fd) {
    this.fd = fd;
  }

  /** @throws DEVSTATE_E_VFIO_ACCESS, DEVSTATE_E_VFIO_GROUP when the kernel has none */
  static open(path = '/dev/iommu'): Iommufd {
    return new Iommufd(openVfio(path));
  }

  /** A new address space. @returns its id */
  allocIoas(): number {
    const bytes = encodeIoasAlloc();
    callStruct(this.fd.number, IommufdRequest.IOAS_ALLOC, bytes, 'make an address space in an iommufd');
    return decodeIoasAlloc(bytes);
  }

  /** Ends an object of the iommufd, such as an address space that nothing is attached to. */
  destroy(id: number): void {
    callStruct(this.fd.number, IommufdRequest.DESTROY, encodeDestroy(id), `end object ${id} of an iommufd`);
  }

  /** Addresses that can be mapped in an IOAS, and what they must be multiples of. */
  iovaRanges(ioas: number): { ranges: readonly IovaRange[]; alignment: number } {
    const array = new Uint8Array(MAX_RANGES * IOVA_RANGE_LENGTH);
    const bytes = encodeIovaRanges(ioas, MAX_RANGES);
    const part = { memory: array, offset: 0, length: array.length };
    const place = { pointer: IOVA_RANGES_POINTER };
    const what = `ask which addresses of IOAS ${ioas} can be mapped`;
    callMemory(this.fd.number, IommufdRequest.IOAS_IOVA_RANGES, bytes, place, part, what);
    const { count, alignment } = decodeIovaRanges(bytes);
    return { ranges: decodeIovaRangeArray(array, count), alignment };
  }

  /** Lets devices reach a part of this process's memory at `iova`. BLOCKS while its pages are pinned. */
  map(ioas: number, iova: number, part: MemoryPart, access: DmaAccess): void {
    const bytes = encodeIoasMap({ flags: mapFlags(access), ioas, iova, length: part.length });
    const place = { pointer: IOAS_MAP_ADDRESS, length: IOAS_MAP_SIZE };
    const what = `map ${part.length} bytes at ${hex(iova)} of IOAS ${ioas}`;
    callMemory(this.fd.number, IommufdRequest.IOAS_MAP, bytes, place, part, what);
  }

  /**
   * Likewise a part of a memfd, wherever a process has it mapped: such mappings can change their process.
   * @returns false when the kernel does not have this (before 6.13)
   */
  mapFile(ioas: number, iova: number, part: FilePart, access: DmaAccess): boolean {
    const { fd, offset: start, length } = part;
    const bytes = encodeIoasMapFile({
      flags: mapFlags(access),
      ioas,
      iova,
      fd: fd.number,
      start,
      length,
    });
    const result = native.vfioCallStruct(this.fd.number, IommufdRequest.IOAS_MAP_FILE, bytes);
    if (result === -Errno.ENOTTY) return false;
    const what = `map ${length} bytes of a file at ${hex(iova)} of IOAS ${ioas}`;
    if (result < 0) throw vfioError(what, IommufdRequest.IOAS_MAP_FILE, -result);
    return true;
  }

  /** @returns bytes that were unmapped */
  unmap(ioas: number, iova: number, length: number): number {
    const bytes = encodeIoasUnmap(ioas, iova, length);
    const what = `unmap ${length} bytes at ${hex(iova)} of IOAS ${ioas}`;
    callStruct(this.fd.number, IommufdRequest.IOAS_UNMAP, bytes, what);
    return decodeIoasUnmapped(bytes);
  }

  /**
   * Has all pinned memory of the iommufd counted as this process's.
   * @returns false when the kernel cannot: it does not know the request, or a mapping was not made of a file; nothing is
   * changed then
   */
  changeProcess(): boolean {
    const bytes = encodeChangeProcess();
    const result = native.vfioCallStruct(this.fd.number, IommufdRequest.IOAS_CHANGE_PROCESS, bytes);
    if (result === -Errno.ENOTTY || result === -Errno.EINVAL) return false;
    const what = 'count the pinned memory of an iommufd as this process';
    if (result < 0) throw vfioError(what, IommufdRequest.IOAS_CHANGE_PROCESS, -result);
    return true;
  }

  /** With the last owner of the open file the address spaces end. */
  close(): void {
    this.fd.close();
  }
}

function mapFlags({ read, write }: DmaAccess): number {
  return IoasMapFlag.FIXED_IOVA | (read ? IoasMapFlag.READABLE : 0) | (write ? IoasMapFlag.WRITEABLE : 0);
}
