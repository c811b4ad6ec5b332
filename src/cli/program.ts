// SPDX-License-Identifier: Apache-2.0
/** The command line: one file per command, put together here. */

import './own-stderr.js';

import { Command, CommanderError } from 'commander';
import { DevstateError, ExitCode } from '../errors.js';
import { MIN_FDS, systemLimits } from '../native/index.js';
import { VERSION } from '../version.js';
import { guardStdout, printError } from './output.js';

/** As --help lists them. Only the one that is asked for is loaded: a server that is started anew has somebody waiting. */
const commands: readonly (readonly [name: string, load: () => Promise<() => Command>])[] = [
  ['serve', async () => (await import('./serve.js')).serveCommand],
  ['run', async () => (await import('./run.js')).runCommand],
  ['check', async () => (await import('./check.js')).checkCommand],
  ['migrate', async () => (await import('./migrate.js')).migrateCommand],
  ['upgrade', async () => (await import('./upgrade.js')).upgradeCommand],
  ['recover', async () => (await import('./recover.js')).recoverCommand],
  ['relay', async () => (await import('./relay.js')).relayCommand],
  ['relay-switch', async () => (await import('./relay-switch.js')).relaySwitchCommand],
  ['cpr', async () => (await import('./cpr.js')).cprCommand],
  ['save', async () => (await import('./save.js')).saveCommand],
  ['load', async () => (await import('./load.js')).loadCommand],
  ['inspect', async () => (await import('./inspect.js')).inspectCommand],
  ['verify', async () => (await import('./verify.js')).verifyCommand],
  ['diff', async () => (await import('./diff.js')).diffCommand],
  ['convert', async () => (await import('./convert.js')).convertCommand],
  ['formats', async () => (await import('./formats.js')).formatsCommand],
  ['wrap', async () => (await import('./wrap.js')).wrapCommand],
  ['unwrap', async () => (await import('./wrap.js')).unwrapCommand],
  ['vfio', async () => (await import('./vfio.js')).vfioCommand],
];

const program = new Command('devstate')
  .description('Live migration and device state for vfio-user devices')
  .version(`devstate ${VERSION}, vfio-user 0.2, envelope 1`)
  .showHelpAfterError('(devstate COMMAND --help shows the options)')
  .exitOverride();

/**
 * Servers, which write nothing to stdout but by request. For them Node.js must not open it: it would make a pipe non-blocking
 * for every process that has it.
 */
const SERVERS: ReadonlySet<string | undefined> = new Set(['serve', 'relay', 'run']);

/** Runs what the arguments ask for; the exit code is set when it settles. */
export async function main(): Promise<void> {
  const [, , first = ''] = process.argv;
  const asked = commands.filter(([name]) => name === first);
  const needed = asked.length > 0 || ['-V', '--version'].includes(first) ? asked : commands;
  for (const [, load] of needed) program.addCommand((await load())());
  // Options of a subcommand are wrong in the same way as those of the program.
  for (const command of [...program.commands, ...program.commands.flatMap(({ commands }) => commands)]) {
    command.exitOverride();
  }

  // The reader of our output may leave, and the disk that it goes to may be full: no reason to end in the middle of things.
  if (!SERVERS.has(process.argv[2])) guardStdout();

  try {
    requireFiles();
    await program.parseAsync();
  } catch (error) {
    if (error instanceof CommanderError) {
      // commander has printed it; help and version are no errors.
      process.exitCode = error.exitCode === 0 ? ExitCode.done : ExitCode.usage;
    } else {
      process.exitCode = printError(error);
      // A command that was asked to end does not wait for a reader of what it has written to stdout.
      if (error instanceof DevstateError && error.code === 'DEVSTATE_E_CANCELLED') process.exit();
    }
  }
}

/** @throws DEVSTATE_E_SYSTEM where so few files may be open that a command would fail in the middle of its work */
function requireFiles(): void {
  const { fds } = systemLimits();
  if (fds >= MIN_FDS) return;
  const limit = `this process may open too few files (ulimit -n): ${fds}, and ${MIN_FDS} are needed`;
  throw new DevstateError(
    'DEVSTATE_E_SYSTEM',
    `cannot start devstate: ${limit}; raise the limit to 1024 or more`,
  );
}
