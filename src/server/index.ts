// SPDX-License-Identifier: Apache-2.0
/** The server's end of vfio-user. */

export { CrashJournal, type CrashJournalOptions } from './crash-journal.js';
export { MAX_NOTE_LENGTH } from './feature-command.js';
export type { CapturedDevice, HandoffFormat, HandoffPort } from './handoff-port.js';
export type {
  DmaPeer,
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
