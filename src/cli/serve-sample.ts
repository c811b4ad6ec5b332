// SPDX-License-Identifier: Apache-2.0
/** `devstate serve sample`: the device of libvfio-user's sample server. */

import { Command } from 'commander';
import { SampleDevice } from '../devices/sample/index.js';
import { DevstateError } from '../errors.js';
import { TAKEOVER_VARIABLE } from '../handoff/index.js';
import { DeviceRuntime } from '../runtime/index.js';
import { Server } from '../server/index.js';
import { openCrashJournal, serviceEnvironment } from './crash-journal.js';
import { createLog } from './logger.js';
import { type ServedProtocolOptions, servedProtocolOptions, servedProtocols } from './options.js';
import { untilTold } from './signals.js';

interface ServeSampleOptions extends ServedProtocolOptions {
  socket: string;
  migrationSocket?: string;
  once?: boolean;
}

export function serveSampleCommand(): Command {
  const command = new Command('sample')
    .description("the device of libvfio-user's sample server, for its sample clients")
    .requiredOption('--socket <path>', 'where the client connects')
    .option('--migration-socket <path>', 'where managers connect')
    .option('--once', 'end when the first client leaves');
  for (const option of servedProtocolOptions()) command.addOption(option);
  return command.action(serveSample);
}

async function serveSample(options: ServeSampleOptions): Promise<void> {
  const { socket, migrationSocket, once } = options;
  // It would listen where its predecessor does, and say that this one is in the way.
  if (process.env[TAKEOVER_VARIABLE] !== undefined) {
    const message =
      'the sample device cannot be handed over: save its state, stop its server, start another, load it';
    throw new DevstateError('DEVSTATE_E_NOT_MIGRATABLE', message);
  }
  const protocols = servedProtocols(options);
  // Listened for before the sockets exist: a process that sees them may send one.
  const told = untilTold();
  const log = createLog('sample');
  let leave: () => void = () => {};
  const left = new Promise<void>((resolve) => {
    leave = resolve;
  });
  const device = new SampleDevice();
  // Refused where it would be taken for protected: it keeps nothing.
  openCrashJournal(device, serviceEnvironment({}), { log });
  const server = new Server({
    device: new DeviceRuntime(device, { name: 'sample', log, ...protocols }),
    socketPath: socket,
    ...(migrationSocket === undefined ? {} : { migrationSocketPath: migrationSocket }),
    log,
    vmmLeft: leave,
  });
  log('info', `serving the sample device at ${socket}`);
  await (once === true ? Promise.race([told, left]) : told);
  await server.close();
  device.close();
}
