// SPDX-License-Identifier: Apache-2.0
/** The open files of a device, as a bundle has them. */

import type { DeviceFile, DeviceFileKind } from '../device/index.js';
import { type BundleEntry, FdKind } from '../handoff/index.js';

const KINDS: Readonly<Record<DeviceFileKind, FdKind>> = {
  file: FdKind.FILE,
  memory: FdKind.MEMORY,
  sealed: FdKind.SEALED,
  eventfd: FdKind.EVENTFD,
  socket: FdKind.SOCKET,
  listener: FdKind.LISTENER,
};

export function bundleKind(kind: DeviceFileKind): FdKind {
  return KINDS[kind];
}

export function bundleEntry({ kind, name, fd }: DeviceFile): BundleEntry {
  return { kind: bundleKind(kind), name, fd };
}
