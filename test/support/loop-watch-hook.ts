// SPDX-License-Identifier: Apache-2.0
/**
 * Loaded into every server that a test starts (`--import`, see loop-watch.ts): measures how long the event loop stands still,
 * and appends a line to a file for each time that it does so for longer than the bound. The file is there, and empty, from the
 * moment on from which it is measured.
 *
 * A timer that is late by more than the bound shows it. Time in which the thread was ready and had no processor, because
 * the machine is loaded, is not counted: the kernel says how long that was. What remains is work, and waiting in system calls.
 * Garbage collection is not counted: no peer decides when it comes, and its length depends on the machine.
 */

import { appendFileSync } from 'node:fs';
import { loadavg } from 'node:os';
import { PerformanceObserver } from 'node:perf_hooks';
import { isMainThread } from 'node:worker_threads';
import { clock } from './metronome.js';
import { threadTimes } from './thread-times.js';

/** Longest that an event loop may stand still, ms: as docs/architecture.md says. */
export const BOUND_MS = 50;
const TICK_MS = 10;
/** A server has started, with all its modules, once so many ticks in a row are in time. */
const CALM_TICKS = 20;

/** The event loop stood still. Ms, moments of `clock()`. */
export interface Stop {
  readonly work: number;
  readonly waiting: number;
  readonly from: number;
  readonly to: number;
}

/** What is written of it. */
export interface Line extends Stop {
  /** The load of the machine. */
  readonly load: number;
  readonly command: string;
}

/** Commands of `devstate` that serve, and test programs that do. */
function isServer([program = '', command = '', first = '', ...rest]: readonly string[]): boolean {
  if (program.endsWith('-server.js')) return true;
  // It prints and ends.
  if (rest.includes('--print-model-json')) return false;
  return ['serve', 'relay', 'run'].includes(command) || (command === 'vfio' && first === 'hold');
}

function watch(directory: string): void {
  const path = `${directory}/${process.pid}`;
  const times = threadTimes(`/proc/self/task/${process.pid}`);
  let collected = 0;
  const observer = new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) collected += duration;
  });
  observer.observe({ entryTypes: ['gc'] });
  let calm = 0;
  let due = clock() + TICK_MS;
  let had = times();
  let hadCollected = 0;
  const tick = (): void => {
    const now = clock();
    const has = times();
    const stood = now - due - (has.waited - had.waited);
    if (calm < CALM_TICKS) {
      calm = stood < TICK_MS ? calm + 1 : 0;
      if (calm === CALM_TICKS) appendFileSync(path, '');
    } else if (stood > BOUND_MS) {
      // What ran before the timer was due was another turn of the loop.
      const work = Math.min(has.ran - had.ran, stood);
      judgeLater({ work, waiting: stood - work, from: due, to: now }, hadCollected);
    }
    due = clock() + TICK_MS;
    had = times();
    hadCollected = collected;
    setTimeout(tick, TICK_MS).unref();
  };
  /** The observer sees a collection in the turn after it, or in the one after that. */
  const judgeLater = (stop: Stop, collectedBefore: number): void => {
    setImmediate(() => setImmediate(judge, stop, collectedBefore).unref()).unref();
  };
  const judge = (stop: Stop, collectedBefore: number): void => {
    const work = Math.max(0, stop.work - (collected - collectedBefore));
    if (work + stop.waiting <= BOUND_MS) return;
    const [load = 0] = loadavg();
    const command = process.argv.slice(2).join(' ');
    appendFileSync(path, `${JSON.stringify({ ...stop, work, load, command } satisfies Line)}\n`);
  };
  setTimeout(tick, TICK_MS).unref();
}

const { DEVSTATE_LOOP_WATCH: directory } = process.env;
if (directory !== undefined && isMainThread && isServer(process.argv.slice(1))) watch(directory);
