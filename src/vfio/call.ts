// SPDX-License-Identifier: Apache-2.0
/** Calls of the kernel, and what its errnos mean: each has a usual cause, and that is what an operator needs to hear. */

import { DevstateError, type ErrorCode } from '../errors.js';
import { Errno, type Mapping, native, systemError } from '../native/index.js';
import { type Request, VfioRequest } from './uapi/index.js';

interface Cause {
  readonly code?: ErrorCode;
  readonly words: string;
}

/** Request → errno → the usual cause. */
const CAUSES: Readonly<Partial<Record<number, Readonly<Partial<Record<number, Cause>>>>>> = {
  [VfioRequest.GROUP_SET_CONTAINER]: {
    [Errno.EINVAL]: { words: 'the group is in a container already, or the file is no container' },
    [Errno.EPERM]: {
      code: 'DEVSTATE_E_VFIO_GROUP',
      words: 'the group is not viable: another function of it is bound to a host driver',
    },
    [Errno.EBUSY]: { code: 'DEVSTATE_E_VFIO_BUSY', words: 'the group is in use by another file' },
  },
  [VfioRequest.GROUP_UNSET_CONTAINER]: {
    [Errno.EBUSY]: { code: 'DEVSTATE_E_VFIO_BUSY', words: 'devices of the group are open still' },
    [Errno.EINVAL]: { words: 'the group is in no container' },
  },
  [VfioRequest.GROUP_GET_DEVICE_FD]: {
    [Errno.ENODEV]: { code: 'DEVSTATE_E_VFIO_GROUP', words: 'the group has no device of that name' },
    [Errno.EINVAL]: { words: 'the group is in no container, or its container has no IOMMU set' },
    [Errno.EPERM]: {
      code: 'DEVSTATE_E_VFIO_GROUP',
      words: 'the group is not viable: another function of it is bound to a host driver',
    },
  },
  [VfioRequest.SET_IOMMU]: {
    [Errno.EINVAL]: { words: 'the container has no group yet, or an IOMMU already' },
    [Errno.ENODEV]: { words: 'no driver for this IOMMU: load vfio_iommu_type1' },
    [Errno.EPERM]: {
      words:
        'interrupts are not remapped on this machine; it takes allow_unsafe_interrupts of vfio_iommu_type1',
    },
  },
  [VfioRequest.IOMMU_MAP_DMA]: {
    [Errno.ENOMEM]: {
      code: 'DEVSTATE_E_VFIO_MEMLOCK',
      words: 'more memory would be locked than RLIMIT_MEMLOCK allows',
    },
    [Errno.EEXIST]: { words: 'a part of these addresses is mapped already' },
    [Errno.EINVAL]: {
      words:
        'address, length or offset is no multiple of the page size, or outside of what the IOMMU can address',
    },
    [Errno.ENOSPC]: { words: 'the container has as many mappings as it may: see dma_entry_limit' },
    [Errno.EFAULT]: { words: 'the memory cannot be pinned' },
  },
  [VfioRequest.IOMMU_UNMAP_DMA]: {
    [Errno.EINVAL]: { words: 'it would cut a mapping in two, or the kernel does not know the flags' },
  },
  [VfioRequest.DEVICE_BIND_IOMMUFD]: {
    [Errno.EINVAL]: {
      code: 'DEVSTATE_E_VFIO_BUSY',
      words: 'the device is bound already, here or by another open file',
    },
  },
  [VfioRequest.DEVICE_FEATURE]: {
    [Errno.ENOTTY]: { words: 'the device, or its driver, does not have it' },
  },
  [VfioRequest.DEVICE_RESET]: {
    [Errno.EINVAL]: { words: 'the device has no reset of its own' },
    [Errno.ENOTTY]: { words: 'the device has no reset of its own' },
  },
};

/** What any request can meet. */
const GENERAL: Readonly<Partial<Record<number, Cause>>> = {
  [Errno.ENOTTY]: { words: 'this kernel does not know the request' },
  [Errno.EACCES]: { code: 'DEVSTATE_E_VFIO_ACCESS', words: 'permission denied' },
  [Errno.EPERM]: { code: 'DEVSTATE_E_VFIO_ACCESS', words: 'not permitted' },
  [Errno.EBUSY]: { code: 'DEVSTATE_E_VFIO_BUSY', words: 'it is in use' },
  [Errno.EIO]: { words: 'the device does not answer' },
  [Errno.ENODEV]: { words: 'the device is gone' },
};

/** The error for a request that came back with `errno`; `what` says what was tried, as in "map 4096 bytes". */
export function vfioError(what: string, request: Request | undefined, errno: number): DevstateError {
  const known = (request === undefined ? undefined : CAUSES[request]?.[errno]) ?? GENERAL[errno];
  const cause = systemError(what, errno);
  if (known === undefined) return new DevstateError('DEVSTATE_E_VFIO', cause.message, { cause, errno });
  const { code = 'DEVSTATE_E_VFIO', words } = known;
  return new DevstateError(code, `${cause.message}: ${words}`, { cause, errno });
}

function checked(result: number, what: string, request: Request): number {
  if (result < 0) throw vfioError(what, request, -result);
  return result;
}

/** A request with a number. @throws DEVSTATE_E_VFIO or a code of its own */
export function call(fd: number, request: Request, value: number, what: string): number {
  return checked(native.vfioCall(fd, request, value), what, request);
}

/** A request with a structure, which the answer is in as well. @throws likewise */
export function callStruct(fd: number, request: Request, bytes: Uint8Array, what: string): number {
  return checked(native.vfioCallStruct(fd, request, bytes), what, request);
}

/** A part of memory that a request points to. */
export interface MemoryPart {
  readonly memory: Mapping | Uint8Array;
  readonly offset: number;
  readonly length: number;
}

/** Places in a structure: of the address, and of the length if there is one. */
export interface PointerPlace {
  readonly pointer: number;
  readonly length?: number;
}

/** A request whose structure points to memory. @throws likewise */
export function callMemory(
  fd: number,
  request: Request,
  bytes: Uint8Array,
  place: PointerPlace,
  part: MemoryPart,
  what: string,
): number {
  const { memory, offset, length } = part;
  const lengthAt = place.length ?? -1;
  return checked(
    native.vfioCallMemory(fd, request, bytes, place.pointer, lengthAt, memory, offset, length),
    what,
    request,
  );
}
