// SPDX-License-Identifier: Apache-2.0
/**
 * Formats of the state of Linux's VFIO drivers: opaque records that hold, one after the other, what the driver's data file
 * gave. One for each driver with migration, so that a state is never given to another driver. Names and models are made of
 * what sysfs calls the driver, see `src/vfio/migration/driver.ts`.
 */
import type { RegisteredFormat } from './registered-format.js';
import { parseUuid } from './uuid.js';

function driverFormat(family: string, uuid: string): RegisteredFormat {
  return {
    uuid: parseUuid(uuid),
    name: `org.kernel.vfio.${family}`,
    kind: 'vendor',
    models: [`kernel.org/vfio/${family}`],
    versions: ['1.0'],
    schema: 'kernel-vfio.md',
    stability: 'experimental',
  };
}

/** Ordered by name. */
export const KERNEL_DRIVER_FORMATS: readonly RegisteredFormat[] = [
  driverFormat('hisi-acc', '37b5a72f-238e-46ec-b208-fe099c660365'),
  driverFormat('mlx5', '9954154b-f41a-4050-838a-fdae82ea6531'),
  driverFormat('mtty', '98add978-a7ac-44ed-9fac-89f0ac290bf3'),
  driverFormat('pds', '01998bbd-5690-4a91-8d88-a1cd353cb4df'),
  driverFormat('qat', 'afddd40a-3645-4934-984d-402acef4e1f5'),
  driverFormat('virtio', '04a3c592-bc31-4852-a8cc-aefeed1ebbd6'),
  driverFormat('xe', '3656fcf7-1398-486c-8550-30293d2592f8'),
];
