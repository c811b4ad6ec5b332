// SPDX-License-Identifier: Apache-2.0
/** What management and the CLI ask for: sequences over devices and QEMUs, with their rollback. */

export {
  type CheckDevicesOptions,
  type CheckDevicesResult,
  type CheckedFormat,
  type CheckedPeer,
  checkDevices,
} from './check-devices.js';
export type { ProtocolChoice } from './device-socket.js';
export { type LoadOptions, load } from './load.js';
export { type MigrateHooks, migrate } from './migrate/migrate.js';
export type {
  DevicePair,
  Downtime,
  MigratedDevice,
  MigrateOptions,
  MigrateProgress,
  MigrateResult,
  Phase,
} from './migrate/types.js';
export { type RecoverOptions, type RecoverResult, recover } from './recover.js';
export { type SaveOptions, type SaveResult, save } from './save.js';
export type { FormatOptions, NegotiationSummary } from './state-plan.js';
