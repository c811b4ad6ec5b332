// SPDX-License-Identifier: Apache-2.0
/** The kernel's VFIO: containers, groups, devices, iommufd. Knows nothing of vfio-user. */

export type { MemoryPart } from './call.js';
export { Cdev } from './cdev.js';
export { Container, type DmaAccess } from './container.js';
export { VfioDevice } from './device.js';
export { Group, type GroupId } from './group.js';
export { type FilePart, Iommufd } from './iommufd.js';
export * from './uapi/index.js';
