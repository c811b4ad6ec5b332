// SPDX-License-Identifier: Apache-2.0
/** `devstate relay`: between a VMM and any vfio-user device server, until it is asked to end. */

import { Command } from 'commander';
import { DevstateError } from '../errors.js';
import { TAKEOVER_VARIABLE } from '../handoff/index.js';
import { DEFAULT_HOLD_MS, Relay } from '../relay/index.js';
import { createLog } from './logger.js';
import { parsePositive } from './options.js';
import { untilTold } from './signals.js';

interface RelayCommandOptions {
  listen: string;
  server: string;
  migrationSocket?: string;
  control?: string;
  holdMs: number;
  trap?: boolean;
  map?: boolean;
  preCopy: boolean;
}

export function relayCommand(): Command {
  return new Command('relay')
    .description('stand between a VMM and its device server: migrate, replace, re-attach the server')
    .requiredOption('--listen <path>', 'where the VMM connects')
    .requiredOption('--server <path>', 'where the device server listens')
    .option('--migration-socket <path>', 'where managers connect')
    .option('--control <path>', 'where devstate relay-switch and upgrade connect')
    .option(
      '--hold-ms <ms>',
      "how long an access waits for a server; less than the VMM's own time-out (QEMU: 5000)",
      parsePositive,
      DEFAULT_HOLD_MS,
    )
    .option('--trap', 'do not let managers map the data section of the migration region (v1)')
    .option('--no-pre-copy', 'do not tell managers that the device can send state while it runs (v2)')
    .option('--map', 'let the VMM map memory of the server, which then cannot be replaced')
    .action(relay);
}

async function relay(options: RelayCommandOptions): Promise<void> {
  const { listen, server, migrationSocket, control, holdMs, trap, map, preCopy } = options;
  const paths = [listen, server, migrationSocket, control].filter((path) => path !== undefined);
  if (new Set(paths).size < paths.length) {
    throw new DevstateError('DEVSTATE_E_USAGE', 'two sockets have the same path; give each its own');
  }
  // Listened for before the sockets exist: a process that sees them may send one.
  const told = untilTold();
  const log = createLog('relay');
  const takeover = process.env[TAKEOVER_VARIABLE];
  const running = new Relay({
    listenPath: listen,
    serverPath: server,
    ...(migrationSocket === undefined ? {} : { migrationSocketPath: migrationSocket }),
    ...(control === undefined ? {} : { controlPath: control }),
    holdMs,
    trap: trap === true,
    mapping: map === true,
    noPreCopy: !preCopy,
    ...(takeover === undefined ? {} : { takeover }),
    log,
  });
  const does = takeover === undefined ? 'relaying' : 'waiting to take over';
  log('info', `${does} ${listen} to ${server}`);
  try {
    await Promise.race([told, running.ended]);
  } finally {
    await running.close();
  }
}
