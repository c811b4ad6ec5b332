// SPDX-License-Identifier: Apache-2.0
/** The open files of a device, which go on in another process when its server is replaced. */

import type { Fd } from '../transport/index.js';

/** What a file is. The process that takes it makes sure. */
export type DeviceFileKind =
  /** A regular file or a block device, with whatever lock its open file holds. */
  | 'file'
  /** Memory that processes share: a memfd, or a file that can be mapped. */
  | 'memory'
  /** A memfd with all seals. */
  | 'sealed'
  | 'eventfd'
  /** A connected UNIX stream socket, and a listening one. */
  | 'socket'
  | 'listener';

export interface DeviceFile {
  readonly kind: DeviceFileKind;
  /** `device:` and a word of the device's own, not `state`; at most 255 bytes. */
  readonly name: string;
  readonly fd: Fd;
}

/**
 * The open files of a device that its successor in another process continues with: the very open files, so that a lock
 * held on one stays held.
 */
export interface DeviceFiles {
  /** The images among them, which have a lock with at most one holder. */
  readonly images?: readonly DeviceImage[];
  /** Another number whenever `exportFiles` has other `data`; without it, that never changes. */
  readonly generation?: number;
  /** What goes over. The caller closes the fds, which are duplicates. `data`: what JSON has, and bytes. */
  exportFiles(): { readonly files: readonly DeviceFile[]; readonly data: unknown };
  /**
   * Continues with what came: `take` gives each file once. Nothing else of the device is there yet.
   * @throws when these are not the files that this device works on; what was taken is closed then
   */
  importFiles(take: (name: string, kind: DeviceFileKind) => Fd, data: unknown): void;
  /** The files are another process's: close them, and do nothing else with them. */
  relinquish(): void;
}

/** A file with at most one user, who holds a lock over all of it. */
export interface DeviceImage {
  readonly path: string;
  /** This process holds the lock. */
  readonly locked: boolean;
  /** Leaves byte `byte`, beyond the file's end, out of the lock that is held, and none that was left out before; undefined for none. */
  leaveOut(byte: number | undefined): void;
  /** Whether no other process has byte `byte` locked. */
  isFree(byte: number): boolean;
}
