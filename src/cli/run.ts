// SPDX-License-Identifier: Apache-2.0
/** `devstate run`: a device server that survives its own crash. */

import { Command, InvalidArgumentError, Option } from 'commander';
import { type RunEvent, run } from '../operations/index.js';
import { createLog } from './logger.js';
import { formatMs } from './output.js';
import { untilSignalled } from './signals.js';

interface RunCommandOptions {
  restart: 'on-crash' | 'never';
  maxCrashes: number;
  maxFds: number;
}

export function runCommand(): Command {
  return new Command('run')
    .description('run a device server, and start it anew where it stood when it crashes')
    .argument('<command...>', "the server's command line, after --")
    .addOption(
      new Option('--restart <when>', 'when the server is started anew')
        .choices(['on-crash', 'never'])
        .default('on-crash'),
    )
    .option(
      '--max-crashes <n>',
      'crashes in a row, each within a second of serving, after which it is given up',
      parseCount,
      5,
    )
    .option('--max-fds <n>', 'file descriptors that are kept for the server', parseCount, 4096)
    .action(runServer);
}

function parseCount(text: string): number {
  const count = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(count) || count === 0)
    throw new InvalidArgumentError('It must be a whole number greater than 0.');
  return count;
}

async function runServer(command: string[], options: RunCommandOptions): Promise<void> {
  const log = createLog('run');
  let restart = (): void => {};
  const onHangUp = (): void => restart();
  process.on('SIGHUP', onHangUp);
  try {
    const { exitCode } = await untilSignalled(
      (stop) =>
        run({
          ...options,
          command,
          stop,
          progress: (event) => log(event.event === 'crashed' ? 'error' : 'info', textOf(event)),
          onStarted: (again) => {
            restart = again;
          },
        }),
      ['SIGINT', 'SIGTERM'],
    );
    process.exitCode = exitCode;
  } finally {
    process.off('SIGHUP', onHangUp);
  }
}

function textOf(event: RunEvent): string {
  switch (event.event) {
    case 'serving':
      return event.restarts === 0
        ? `process ${event.pid} serves`
        : `process ${event.pid} serves, ${formatMs(event.ms)} after the crash (restart ${event.restarts})`;
    case 'crashed':
      return `process ${event.pid} ${event.how}; ${event.fds} file descriptors are kept`;
    case 'ended':
      return `the server ${event.how}`;
  }
}
