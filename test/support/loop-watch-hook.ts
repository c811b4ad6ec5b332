// SPDX-License-Identifier: Apache-2.0
/**
 * Loaded into every server that a test starts (`--import`, see loop-watch.ts): measures how long the event loop stands still,
 * and appends a line to a file for each time that it does so for longer than the bound.
 *
 * A timer that is late by more than the bound shows it. Time in which the thread was ready and had no processor, because
 * the machine is loaded, is not counted: the kernel says how long that was. What remains is work, and waiting in system
 * calls. Some of the waiting is for threads of V8 that have no processor either, so on a loaded machine more of it is let pass.
 */

import { appendFileSync, closeSync, openSync, readSync } from 'node:fs';
import { loadavg } from 'node:os';

/** Longest that the event loop may stand still, ms. */
const BOUND_MS = 50;
const TICK_MS = 10;
/** A server has started, with all its modules, once so many ticks in a row are in time. */
const CALM_TICKS = 20;

/** Commands of `devstate` that serve, and test programs that do. */
function isServer([program = '', command = '', first = '', ...rest]: readonly string[]): boolean {
  if (program.endsWith('-server.js')) return true;
  // It prints and ends.
  if (rest.includes('--print-model-json')) return false;
  return ['serve', 'relay', 'run'].includes(command) || (command === 'vfio' && first === 'hold');
}

function watch(directory: string): void {
  const buffer = Buffer.alloc(256);
  // Of the main thread, in ns: time on a processor, time ready and waiting for one.
  const schedstat = openSync(`/proc/self/task/${process.pid}/schedstat`, 'r');
  const times = (): { ran: number; waited: number } => {
    const [ran = 0, waited = 0] = buffer
      .toString('latin1', 0, readSync(schedstat, buffer, 0, buffer.length, 0))
      .split(' ')
      .map((text) => Number(text) / 1e6);
    return { ran, waited };
  };
  let calm = 0;
  let before = performance.now();
  let had = times();
  const tick = (): void => {
    const now = performance.now();
    const has = times();
    const late = now - before - TICK_MS;
    const stood = late - (has.waited - had.waited);
    // What ran before the timer was due was another turn of the loop.
    const work = Math.min(has.ran - had.ran, stood);
    if (calm < CALM_TICKS) calm = late < TICK_MS ? calm + 1 : 0;
    else if (stood > BOUND_MS && isTooLong(stood, work)) {
      const line = `${stood.toFixed(0)} ms (${work.toFixed(0)} ms of work) at ${Date.now()}: ${process.argv.slice(2).join(' ')}\n`;
      appendFileSync(`${directory}/${process.pid}`, line);
    }
    before = performance.now();
    had = times();
    setTimeout(tick, TICK_MS).unref();
  };
  setTimeout(tick, TICK_MS).unref();
  process.on('exit', () => closeSync(schedstat));
}

function isTooLong(stood: number, work: number): boolean {
  const [load = 0] = loadavg();
  return work > BOUND_MS || stood > BOUND_MS * Math.max(1, load);
}

const { DEVSTATE_LOOP_WATCH: directory } = process.env;
if (directory !== undefined && isServer(process.argv.slice(1))) watch(directory);
