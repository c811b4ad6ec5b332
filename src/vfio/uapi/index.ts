// SPDX-License-Identifier: Apache-2.0
/** The kernel's VFIO and iommufd interfaces as bytes: numbers and layouts, nothing else. */

// What vfio-user has from the kernel, layouts and numbers, is in `src/wire` already.
export {
  decodeIrqInfo,
  decodeRegionInfo,
  FEATURE_LENGTH,
  FeatureFlag,
  IRQ_INFO_LENGTH,
  type IrqInfo,
  IrqInfoFlag,
  IrqSetFlag,
  type MmapArea,
  PciIrq,
  PciRegion,
  REGION_INFO_LENGTH,
  type RegionInfo,
  RegionInfoFlag,
} from '../../wire/index.js';
export * from './container.js';
export * from './device.js';
export * from './iommufd.js';
export * from './requests.js';
