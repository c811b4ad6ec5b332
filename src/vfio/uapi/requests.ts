// SPDX-License-Identifier: Apache-2.0
/** Numbers of the kernel's VFIO and iommufd interfaces, under the names of <linux/vfio.h> and <linux/iommufd.h>. */

/** `_IO(';', number)`: all requests of both interfaces are made so, whatever they carry. */
const request = (number: number): number => (0x3b << 8) | number;
const VFIO_BASE = 100;
const IOMMUFD_BASE = 0x80;

export const VfioRequest = {
  GET_API_VERSION: request(VFIO_BASE + 0),
  CHECK_EXTENSION: request(VFIO_BASE + 1),
  SET_IOMMU: request(VFIO_BASE + 2),
  GROUP_GET_STATUS: request(VFIO_BASE + 3),
  GROUP_SET_CONTAINER: request(VFIO_BASE + 4),
  GROUP_UNSET_CONTAINER: request(VFIO_BASE + 5),
  GROUP_GET_DEVICE_FD: request(VFIO_BASE + 6),
  DEVICE_GET_INFO: request(VFIO_BASE + 7),
  DEVICE_GET_REGION_INFO: request(VFIO_BASE + 8),
  DEVICE_GET_IRQ_INFO: request(VFIO_BASE + 9),
  DEVICE_SET_IRQS: request(VFIO_BASE + 10),
  DEVICE_RESET: request(VFIO_BASE + 11),
  DEVICE_FEATURE: request(VFIO_BASE + 17),
  DEVICE_BIND_IOMMUFD: request(VFIO_BASE + 18),
  DEVICE_ATTACH_IOMMUFD_PT: request(VFIO_BASE + 19),
  DEVICE_DETACH_IOMMUFD_PT: request(VFIO_BASE + 20),
  // Requests of the type 1 IOMMU; the same numbers mean something else on a device.
  IOMMU_GET_INFO: request(VFIO_BASE + 12),
  IOMMU_MAP_DMA: request(VFIO_BASE + 13),
  IOMMU_UNMAP_DMA: request(VFIO_BASE + 14),
  // Requests of a migration's data file.
  MIG_GET_PRECOPY_INFO: request(VFIO_BASE + 21),
} as const;

export const IommufdRequest = {
  DESTROY: request(IOMMUFD_BASE + 0x00),
  IOAS_ALLOC: request(IOMMUFD_BASE + 0x01),
  IOAS_IOVA_RANGES: request(IOMMUFD_BASE + 0x04),
  IOAS_MAP: request(IOMMUFD_BASE + 0x05),
  IOAS_UNMAP: request(IOMMUFD_BASE + 0x06),
  OPTION: request(IOMMUFD_BASE + 0x07),
  IOAS_MAP_FILE: request(IOMMUFD_BASE + 0x0f),
  IOAS_CHANGE_PROCESS: request(IOMMUFD_BASE + 0x12),
} as const;

export type Request =
  | (typeof VfioRequest)[keyof typeof VfioRequest]
  | (typeof IommufdRequest)[keyof typeof IommufdRequest];

/** `VFIO_API_VERSION`. */
export const API_VERSION = 0;

/** What CHECK_EXTENSION asks for; IOMMU types are SET_IOMMU's values too. */
export const Extension = {
  TYPE1_IOMMU: 1,
  TYPE1v2_IOMMU: 3,
  DMA_CC_IOMMU: 4,
  TYPE1_NESTING_IOMMU: 6,
  NOIOMMU_IOMMU: 8,
  /** UNMAP_DMA has the flag ALL. */
  UNMAP_ALL: 9,
  /** MAP_DMA and UNMAP_DMA have the flag VADDR; not with a mediated device in the container. */
  UPDATE_VADDR: 10,
} as const;
export type Extension = (typeof Extension)[keyof typeof Extension];

export const GroupFlag = { VIABLE: 1, CONTAINER_SET: 2 } as const;

/** DEVICE_GET_INFO. */
export const DeviceFlag = {
  RESET: 1,
  PCI: 2,
  PLATFORM: 4,
  AMBA: 8,
  CCW: 16,
  AP: 32,
  FSL_MC: 64,
  CAPS: 128,
} as const;

export const MapDmaFlag = { READ: 1, WRITE: 2, VADDR: 4 } as const;
export const UnmapDmaFlag = { GET_DIRTY_BITMAP: 1, ALL: 2, VADDR: 4 } as const;

/** IOMMU_GET_INFO. */
export const IommuInfoFlag = { PGSIZES: 1, CAPS: 2 } as const;
export const IommuCapability = { IOVA_RANGE: 1, MIGRATION: 2, DMA_AVAIL: 3 } as const;

/** IOAS_MAP and IOAS_MAP_FILE. */
export const IoasMapFlag = { FIXED_IOVA: 1, WRITEABLE: 2, READABLE: 4 } as const;
