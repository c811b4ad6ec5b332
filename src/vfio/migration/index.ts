// SPDX-License-Identifier: Apache-2.0
/** Devices of the kernel's VFIO as ends of a migration. Apart from `src/vfio`: not everybody there has a use for formats. */

export { type KernelDriver, kernelDriver } from './driver.js';
export { KernelMigration } from './kernel-migration.js';
export { isVfioDeviceName, openKernelMigration } from './open.js';
