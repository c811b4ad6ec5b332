// SPDX-License-Identifier: Apache-2.0
/** The server's end of vfio-user. */

export { MAX_NOTE_LENGTH } from './capabilities.js';
export { CrashJournal, type CrashJournalOptions } from './crash-journal.js';
export type { DmaPeer } from './dma-peer.js';
export type { CapturedDevice, HandoffFormat, HandoffPort } from './handoff-port.js';
export type {
  ImagesPort,
  IoFd,
  ManagementPort,
  MigrationPort,
  MigrationRegionPort,
  RecoveryPort,
  ServedDevice,
  ServedIrq,
  ServedRegion,
  Understudy,
  ValuesPort,
} from './served-device.js';
export { Server, type ServerOptions } from './server.js';
