// SPDX-License-Identifier: Apache-2.0
/** Everything devstate does with a QEMU: its monitor, its migration, and the view it has of a PCI device. */

export { type ConfigAccess, type ConfigEcam, type ConfigPorts, findConfigAccess } from './config-access.js';
export { makeConfigReads } from './config-reads.js';
export * from './cpr/index.js';
export { missingCpuFeatures } from './cpus.js';
export { type Guest, GuestWatch, guestAfter, guestInState, initialGuest } from './guest-watch.js';
export { privateFiles, type RamBlock, ramBlocks, whyMemoryIsLost } from './memory.js';
export * from './migration.js';
export { QemuOutput } from './output.js';
export {
  addFd,
  addIommufd,
  addVfioPci,
  dropFd,
  executeWithFd,
  type FdInSet,
  type FdSet,
  fdSetPath,
  giveFd,
  queryFdSets,
  removeFd,
} from './passed-fds.js';
export type { PciLocation } from './pci-commands.js';
export { findPciDevice, findShownPciDevice, type PciDevice } from './pci-location.js';
export { awaitPciDevice, pciPlace, withLocation } from './pci-reach.js';
export {
  capturePciView,
  IntxError,
  isMuted,
  isSilenced,
  muteInterrupts,
  readConfig,
  replayPciView,
  requireMessageSignalled,
  restoreCommand,
  runConfig,
  silenceIntx,
} from './pci-replay.js';
export { type MsixEntry, PciView } from './pci-view.js';
export { seenBy } from './process-view.js';
export { proveConfigAccess } from './prove-config-access.js';
export { type QemuVersion, QmpClient, QmpCommandError, type QmpEvent } from './qmp.js';
export { Qtest, type QtestAccess, type QtestCommand } from './qtest.js';
export * from './replace.js';
export { isSameQemu } from './same-qemu.js';
export * from './settings.js';
export { listeningPaths } from './unix-listeners.js';
export {
  connectedSocket,
  connectedSockets,
  deviceName,
  deviceType,
  listVfioUserDevices,
  VFIO_USER_TYPE,
  type VfioUserDevice,
} from './vfio-user-devices.js';
export { queryVmIdentity, type VmIdentity } from './vm-identity.js';
