// SPDX-License-Identifier: Apache-2.0
/**
 * `state-server SOCKET MIGRATION_SOCKET STATE_BYTES [mapped]`: the state device on a real server, by v1 and v2; with `mapped`
 * the data section of v1 can be mapped. Prints a line when it listens.
 */

import { DeviceRuntime } from '../../src/runtime/index.js';
import { Server } from '../../src/server/index.js';
import { createStateDevice } from './state-device.js';

const [socketPath = '', migrationSocketPath = '', stateBytes = '', mapped] = process.argv.slice(2);
const log = (level: string, message: string) => {
  if (level !== 'info') process.stderr.write(`${level}: ${message}\n`);
};
const device = new DeviceRuntime(createStateDevice(Number(stateBytes)), {
  name: 'state',
  log,
  migration: 'both',
  migrationRegion: { mapped: mapped === 'mapped' },
});
const server = new Server({ device, socketPath, migrationSocketPath, log });
process.once('SIGTERM', () => void server.close());
process.stdout.write('listening\n');
