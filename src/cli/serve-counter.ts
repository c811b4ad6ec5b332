// SPDX-License-Identifier: Apache-2.0
/** `devstate serve counter`: a device whose commands must take effect once. */

import { Command } from 'commander';
import { CounterDevice } from '../devices/counter/index.js';
import { TAKEOVER_VARIABLE } from '../handoff/index.js';
import { DeviceRuntime } from '../runtime/index.js';
import { Server } from '../server/index.js';
import { journalOption, openCrashJournal, serviceEnvironment } from './crash-journal.js';
import { createLog } from './logger.js';
import { type ServedProtocolOptions, servedProtocolOptions, servedProtocols } from './options.js';
import { untilTold } from './signals.js';

interface ServeCounterOptions extends ServedProtocolOptions {
  socket: string;
  migrationSocket?: string;
  journal?: boolean;
}

export function serveCounterCommand(): Command {
  const command = new Command('counter')
    .description('a counter that commands add to, each of them once')
    .requiredOption('--socket <path>', 'where the VMM connects')
    .option('--migration-socket <path>', 'where managers connect')
    .addOption(journalOption());
  for (const option of servedProtocolOptions()) command.addOption(option);
  return command.action(serveCounter);
}

async function serveCounter(options: ServeCounterOptions): Promise<void> {
  const { socket, migrationSocket } = options;
  const protocols = servedProtocols(options);
  const environment = serviceEnvironment(options);
  // Listened for before the sockets exist: a process that sees them may send one.
  const told = untilTold();
  const log = createLog('counter');
  const takeover = process.env[TAKEOVER_VARIABLE];
  const device = new CounterDevice();
  const crash = openCrashJournal(device, environment, { wanted: options.journal, log });
  const server = new Server({
    device: new DeviceRuntime(device, { name: 'counter', log, crash, ...protocols }),
    socketPath: socket,
    ...(migrationSocket === undefined ? {} : { migrationSocketPath: migrationSocket }),
    ...(takeover === undefined ? {} : { takeover }),
    crash,
    log,
  });
  if (takeover !== undefined) log('info', `waiting to take over ${socket}`);
  else log('info', `serving the counter at ${socket}`);
  try {
    await Promise.race([told, server.ended]);
  } finally {
    await server.close();
    crash?.close();
  }
}
