// SPDX-License-Identifier: Apache-2.0
/** A device on its sockets, in one call. */

import type { Device } from '../device/index.js';
import { Server, type ServerOptions } from '../server/index.js';
import { DeviceRuntime, type RuntimeOptions } from './runtime.js';

export type ServeOptions = RuntimeOptions & Omit<ServerOptions, 'device'>;

/**
 * Listens at once. The server ends by `close`, or when a successor has the device (`ended`).
 * @throws DevstateError DEVSTATE_E_ADDRESS_IN_USE, DEVSTATE_E_SYSTEM, DEVSTATE_E_USAGE for options that do not fit the device
 */
export function serve(device: Device, options: ServeOptions): Server {
  return new Server({ ...options, device: new DeviceRuntime(device, options) });
}
