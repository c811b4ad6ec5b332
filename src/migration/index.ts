// SPDX-License-Identifier: Apache-2.0
/** Migration without I/O: the state machine, save and load sessions, the dirty log. */

export { ConfigReadLog } from './config-read-log.js';
export { DirtyLog, dirtyRanges, MIN_LOG_PAGE_SIZE } from './dirty-log.js';
export { type FormatChooser, LoadSession } from './load-session.js';
export type {
  EndDescription,
  MigrationEnd,
  MigrationProtocol,
  PrecopyInfo,
  StreamKind,
  ValueAccess,
} from './migration-end.js';
export * from './next-vmm.js';
export { PageBitmap } from './page-bitmap.js';
export { RawLoadSession, RawSaveSession } from './raw-state.js';
export { type RecordSource, SaveSession } from './save-session.js';
export { BrokenDeviceError, MigrationMachine, migrationPath, supportedStates } from './state-machine.js';
export * from './v1/index.js';
