// SPDX-License-Identifier: Apache-2.0
/** The device SDK: write a `Device`, wrap it in a `DeviceRuntime`, give that to a `Server`. */

/** What an access is refused with. */
export { Errno, RequestError } from '../wire/index.js';
export * from './device.js';
export {
  type Access,
  type Backing,
  DmaFault,
  GuestMemory,
  type MappedBacking,
  type MemoryRange,
  type MemoryRegion,
  type Pin,
  type RemoteBacking,
  WINDOW_SIZE,
  type WriteLog,
} from './guest-memory.js';
export { type InterruptState, Interrupts, type Signal } from './interrupts.js';
export type { MigrationRegionOptions } from './migration-region.js';
export * from './pci-config.js';
export { DeviceRuntime, type MigrationProtocols, type RuntimeOptions } from './runtime.js';
