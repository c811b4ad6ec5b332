// SPDX-License-Identifier: Apache-2.0
/** The kernel's VFIO: containers, groups, devices, iommufd, and moving them from process to process. Knows nothing of vfio-user. */

export { AssignedDevice } from './assigned-device.js';
export { VfioAssignment } from './assignment.js';
export type { AssignmentDocument, DeviceDocument } from './assignment-document.js';
export { callStruct, type MemoryPart, vfioError } from './call.js';
export { Cdev } from './cdev.js';
export { Container, type DmaAccess } from './container.js';
export { VfioDevice } from './device.js';
export { ContainerSpace, type DmaMapping, type DmaSpace, IommufdSpace, type Rebinding } from './dma-space.js';
export { Group, type GroupId } from './group.js';
export { type FilePart, Iommufd } from './iommufd.js';
export { type MemoryLock, memoryLock, requireMemoryLock } from './memory-lock.js';
export { SharedMemory } from './shared-memory.js';
export { type StationOptions, VfioStation } from './station.js';
export { askStatus, askToGive, type StationStatus } from './station-messages.js';
export { devicesOfGroup, type ListedDevice, type ListedGroup, listVfio, type VfioList } from './sysfs.js';
export { AssignmentGiver, AssignmentReceiver, type Operator } from './transfer.js';
export * from './uapi/index.js';
