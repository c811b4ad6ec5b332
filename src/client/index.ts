// SPDX-License-Identifier: Apache-2.0
/** The client's end of vfio-user. */

export { Client, type ClientOptions, type RegionWrite } from './client.js';
export type { DeviceDescription } from './device-description.js';
export type { DmaHandler } from './dma-service.js';
export { MappedGuestMemory } from './guest-memory.js';
export { type HandoffRequest, MigrationClient } from './migration-client.js';
export { RegionMigrationClient } from './region-migration-client.js';
export { Requester, type RequestOptions, type SendOptions } from './requester.js';
export { type ImageEnd, whyOtherImages } from './same-images.js';
