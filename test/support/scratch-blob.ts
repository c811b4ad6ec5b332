// SPDX-License-Identifier: Apache-2.0
/** What a scratch device saves, without a server. */

import { DeviceRuntime } from '../../src/runtime/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { ScratchDevice, type ScratchOptions } from './scratch-device.js';

export async function scratchBlob(options: ScratchOptions = {}, fill = 0x5a): Promise<Buffer> {
  const device = new ScratchDevice(options);
  const port = new DeviceRuntime(device, { name: 'scratch' }).openMigration();
  device.state.memory.fill(fill);
  await port.setState(MigrationState.STOP_COPY);
  const stream: Uint8Array[] = [];
  for (let parts = await port.read(65536); parts.length > 0; parts = await port.read(65536))
    stream.push(...parts);
  return Buffer.concat(stream);
}
