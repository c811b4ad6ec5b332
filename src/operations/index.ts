// SPDX-License-Identifier: Apache-2.0
/** What management and the CLI ask for: sequences over devices and QEMUs, with their rollback. */

export {
  type CheckDevicesOptions,
  type CheckDevicesResult,
  type CheckedFormat,
  type CheckedPeer,
  checkDevices,
} from './check-devices.js';
export { type ConvertOptions, type ConvertResult, convertFile } from './convert-file.js';
export type { ProtocolChoice } from './device-socket.js';
export { type Difference, type DiffResult, diffFiles } from './diff-files.js';
export { DirectoryExtraction, type ExtractedFile } from './files/extraction.js';
export { InputFile, type ReadProgress, withInput, withRereadable } from './files/input.js';
export { OutputFile, type WithOutputOptions, withOutput } from './files/output.js';
export type { OwnedDevice, OwnerOptions } from './identity/index.js';
export { type InspectedFile, type InspectFileOptions, inspectFile } from './inspect-file.js';
export {
  type ConvertibleFormat,
  type KnownContent,
  type KnownFormat,
  listContentKinds,
  listFormats,
} from './list-formats.js';
export { type LoadOptions, load } from './load.js';
export { type MigrateHooks, migrate } from './migrate/migrate.js';
export {
  DEFAULT_DOWNTIME_MS,
  type DevicePair,
  type Downtime,
  type ExpectedPause,
  type MigratedDevice,
  type MigrateOptions,
  type MigrateProgress,
  type MigrateResult,
  type Phase,
} from './migrate/types.js';
export { type DeviceAddress, deviceAddress } from './migration-end.js';
export { type RecoverOptions, type RecoverResult, recover } from './recover.js';
export { type RelaySwitchOptions, relaySwitch } from './relay-switch.js';
export { type RunEvent, type RunOptions, type RunResult, run } from './run/run.js';
export { type SaveOptions, type SaveResult, save } from './save.js';
export type { FormatOptions, NegotiationSummary } from './state-plan.js';
export {
  type ReplacementResult,
  UPGRADE_PHASES,
  type UpgradeHooks,
  type UpgradeOptions,
  type UpgradePhase,
  type UpgradeProgress,
  type UpgradeRelayOptions,
  type UpgradeResult,
} from './upgrade/types.js';
export { upgrade } from './upgrade/upgrade.js';
export { upgradeRelay } from './upgrade/upgrade-relay.js';
export {
  type KeptDevice,
  UPGRADE_QEMU_PHASES,
  type UpgradedDevice,
  type UpgradeQemuHooks,
  type UpgradeQemuOptions,
  type UpgradeQemuPhase,
  type UpgradeQemuProgress,
  type UpgradeQemuResult,
} from './upgrade-qemu/types.js';
export { upgradeQemu } from './upgrade-qemu/upgrade-qemu.js';
export { type VerifyResult, verifyFile } from './verify-file.js';
export { unwrapFile, type WrapOptions, wrapFile } from './wrap-file.js';
