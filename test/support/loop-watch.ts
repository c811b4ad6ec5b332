// SPDX-License-Identifier: Apache-2.0
/** Shows when the event loop of a server that a test file started stood still for too long, and fails the file then. */

import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { BOUND_MS, type Line } from './loop-watch-hook.js';
import { Metronome } from './metronome.js';

const HOOK = new URL('./loop-watch-hook.js', import.meta.url).href;
/** How often to look whether a server is watched, ms. */
const LOOK_MS = 10;

let directory: string | undefined;
let metronome: Metronome | undefined;

/** The environment in which to start a server, and what starts one. */
export function watchedEnvironment(): NodeJS.ProcessEnv {
  if (directory === undefined) {
    directory = mkdtempSync(join(tmpdir(), 'loop-watch-'));
    metronome = new Metronome();
    process.on('exit', check);
  }
  const { NODE_OPTIONS: options = '' } = process.env;
  return { ...process.env, DEVSTATE_LOOP_WATCH: directory, NODE_OPTIONS: `${options} --import=${HOOK}` };
}

/** Settles when the start of a process is over, so that its event loop is measured. */
export async function watched(pid: number | undefined): Promise<void> {
  while (!existsSync(join(directory ?? '', String(pid)))) await delay(LOOK_MS);
}

/** How long event loops stood still so far, each for longer than docs/architecture.md allows; forgets it. */
export function takeStops(): string[] {
  if (directory === undefined) return [];
  const found: string[] = [];
  for (const pid of readdirSync(directory)) {
    const path = join(directory, pid);
    const text = readFileSync(path, 'utf8').trimEnd();
    truncateSync(path);
    if (text !== '') found.push(...text.split('\n').flatMap((line) => stopOf(pid, line)));
  }
  return found;
}

/**
 * In words, a line of the hook, unless it was the machine that stood still. A processor that is shared with other threads, or
 * other machines, takes twice as long for the same work and more, and the kernel counts all of it as the thread's: it shows by a
 * thread that was late, or by more load than there are processors. What is waited for may be a thread that has no processor.
 */
function stopOf(pid: string, line: string): string[] {
  const { work, waiting, from, to, load, command } = JSON.parse(line) as Line;
  const late = metronome?.lateWithin(from, to) ?? 0;
  const worked = load > availableParallelism() ? work / 2 : Math.max(work / 2, work - late);
  const ms = worked + Math.max(0, waiting - late);
  if (worked <= BOUND_MS && ms <= BOUND_MS * Math.max(1, load)) return [];
  const [length, ofThat] = [ms, worked].map((one) => one.toFixed(0));
  return [`process ${pid}: ${length} ms (${ofThat} ms of work): ${command}`];
}

function check(): void {
  const stops = takeStops();
  rmSync(directory!, { recursive: true });
  if (stops.length === 0) return;
  process.stderr.write(`The event loop of a server stood still:\n  ${stops.join('\n  ')}\n`);
  process.exitCode ||= 1;
}
