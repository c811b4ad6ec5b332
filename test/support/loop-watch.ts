// SPDX-License-Identifier: Apache-2.0
/** Shows when the event loop of a server that a test file started stood still, and fails the file if it was for too long. */

import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const HOOK = new URL('./loop-watch-hook.js', import.meta.url).href;

/**
 * What fails the test file, ms, whether work, as the kernel measures it, or waiting. What is shorter is printed. Twice what
 * event-loop.test.ts holds a server to: where processors are shared, the first run of code was seen to work for 103 ms.
 */
const TOO_LONG_MS = 200;

let directory: string | undefined;

/** The environment in which to start a server, and what starts one. */
export function watchedEnvironment(): NodeJS.ProcessEnv {
  if (directory === undefined) {
    directory = mkdtempSync(join(tmpdir(), 'loop-watch-'));
    process.on('exit', check);
  }
  const { NODE_OPTIONS: options = '' } = process.env;
  return { ...process.env, DEVSTATE_LOOP_WATCH: directory, NODE_OPTIONS: `${options} --import=${HOOK}` };
}

/** How often, and how long, event loops stood still so far, for longer than so many ms; forgets it. */
export function takeStops(longerThan = 0): string[] {
  if (directory === undefined) return [];
  const found: string[] = [];
  for (const pid of readdirSync(directory)) {
    const path = join(directory, pid);
    for (const line of readFileSync(path, 'utf8').trimEnd().split('\n'))
      found.push(`process ${pid}: ${line}`);
    rmSync(path);
  }
  return found.filter((stop) => lengthOf(stop) > longerThan);
}

/** The length of a stop, ms. */
function lengthOf(stop: string): number {
  return Number(/: (\d+) ms /.exec(stop)?.[1]);
}

function check(): void {
  const stops = takeStops();
  rmSync(directory!, { recursive: true });
  if (stops.length === 0) return;
  process.stderr.write(`The event loop of a server stood still:\n  ${stops.join('\n  ')}\n`);
  if (stops.some((stop) => lengthOf(stop) > TOO_LONG_MS)) process.exitCode ||= 1;
}
