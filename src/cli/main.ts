#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/** The command line: one file per command, put together here. */

import { Command, CommanderError } from 'commander';
import { DevstateError, ExitCode } from '../errors.js';
import { VERSION } from '../version.js';
import { checkCommand } from './check.js';
import { convertCommand } from './convert.js';
import { cprCommand } from './cpr.js';
import { diffCommand } from './diff.js';
import { formatsCommand } from './formats.js';
import { inspectCommand } from './inspect.js';
import { loadCommand } from './load.js';
import { migrateCommand } from './migrate.js';
import { printError } from './output.js';
import { recoverCommand } from './recover.js';
import { relayCommand } from './relay.js';
import { relaySwitchCommand } from './relay-switch.js';
import { saveCommand } from './save.js';
import { serveCommand } from './serve.js';
import { upgradeCommand } from './upgrade.js';
import { verifyCommand } from './verify.js';
import { unwrapCommand, wrapCommand } from './wrap.js';

const program = new Command('devstate')
  .description('Live migration and device state for vfio-user devices')
  .version(`devstate ${VERSION}, vfio-user 0.2, envelope 1`)
  .showHelpAfterError('(devstate COMMAND --help shows the options)')
  .exitOverride();

for (const add of [
  serveCommand,
  checkCommand,
  migrateCommand,
  upgradeCommand,
  recoverCommand,
  relayCommand,
  relaySwitchCommand,
  cprCommand,
  saveCommand,
  loadCommand,
  inspectCommand,
  verifyCommand,
  diffCommand,
  convertCommand,
  formatsCommand,
  wrapCommand,
  unwrapCommand,
]) {
  program.addCommand(add());
}
// Options of a subcommand are wrong in the same way as those of the program.
for (const command of [...program.commands, ...program.commands.flatMap(({ commands }) => commands)]) {
  command.exitOverride();
}

// Whoever reads our output may leave, and the disk that it goes to may be full: no reason to end in the middle of things.
process.stderr.on('error', () => {});
process.stdout.once('error', (cause: NodeJS.ErrnoException) => {
  const error = new DevstateError('DEVSTATE_E_OUTPUT', `cannot write to stdout: ${cause.message}`, { cause });
  // Unless the command notices it too, and says so.
  process.once('exit', () => {
    if (cause.code !== 'EPIPE') process.exitCode ||= printError(error);
  });
});
process.stdout.on('error', () => {});

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    // commander has printed it; help and version are no errors.
    process.exitCode = error.exitCode === 0 ? ExitCode.done : ExitCode.usage;
  } else process.exitCode = printError(error);
}
