// SPDX-License-Identifier: Apache-2.0
/**
 * What makes a `Device` servable. `serve` puts it on its sockets; for anything else wrap it in a `DeviceRuntime`, and give
 * that to a `Server`.
 */

export type { MigrationRegionOptions } from './migration-region.js';
export { DeviceRuntime, type MigrationProtocols, type RuntimeOptions } from './runtime.js';
export { type ServeOptions, serve } from './serve.js';
