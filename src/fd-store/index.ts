// SPDX-License-Identifier: Apache-2.0
/** Fds that outlive a process: kept by its service manager, in systemd's protocol. */

export { FdStore, type StoredFd } from './fd-store.js';
export { FdHolder, type KeptFd } from './holder.js';
export { decodeNotification, encodeNotification, type Notification } from './notify.js';
export { Notifier, type ServiceEnvironment, takeServiceEnvironment } from './service.js';
