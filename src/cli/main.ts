#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
/**
 * Where the process begins. It imports nothing but what Node.js has built in, so that a process that cannot even load its
 * modules (too many open files, an addon that is missing) says so in one line, like every other error.
 */

import { writeSync } from 'node:fs';
import { constants } from 'node:os';

/** What an error that comes before everything else is called; those of ours have a code already. */
function describe(error: unknown): string {
  const { code = '', message = String(error), errno, path } = (error ?? {}) as NodeJS.ErrnoException;
  if (code.startsWith('DEVSTATE_E_')) return `${message} [${code}]`;
  if (code === 'EMFILE' || code === 'ENFILE') {
    const limit =
      code === 'EMFILE'
        ? 'this process may open too few files (ulimit -n)'
        : 'the system has too many files open';
    return `cannot start devstate: ${limit}: raise the limit to 1024 or more [DEVSTATE_E_SYSTEM]`;
  }
  const known = errno !== undefined && Object.values(constants.errno).includes(-errno);
  const what = known ? `${code}${path === undefined ? '' : ` at ${path}`}` : message.split('\n')[0];
  return `cannot continue: ${what} [${known ? 'DEVSTATE_E_SYSTEM' : 'DEVSTATE_E_INTERNAL'}]`;
}

let loaded = false;

function fail(error: unknown): never {
  const stack = process.env.DEVSTATE_DEBUG !== undefined && error instanceof Error ? `${error.stack}\n` : '';
  const text = `error: ${describe(error)}\n${stack}`;
  // Once the program is loaded this is its own, which never waits for a reader.
  if (loaded) process.stderr.write(text);
  else writeSync(2, text);
  process.exit(1);
}

process.on('uncaughtException', fail);

async function start(): Promise<void> {
  const { main } = await import('./program.js');
  loaded = true;
  await main();
}

start().catch(fail);
