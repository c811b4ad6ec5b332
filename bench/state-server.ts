// SPDX-License-Identifier: Apache-2.0
/** `state-server SOCKET MIGRATION_SOCKET STATE_BYTES`: the state device on a real server. Prints a line when it listens. */

import { DeviceRuntime } from '../src/device/index.js';
import { Server } from '../src/server/index.js';
import { createStateDevice } from './state-device.js';

const [socketPath = '', migrationSocketPath = '', stateBytes = ''] = process.argv.slice(2);
const log = (level: string, message: string) => {
  if (level !== 'info') process.stderr.write(`${level}: ${message}\n`);
};
const device = new DeviceRuntime(createStateDevice(Number(stateBytes)), { name: 'state', log });
const server = new Server({ device, socketPath, migrationSocketPath, log });
process.once('SIGTERM', () => void server.close());
process.stdout.write('listening\n');
