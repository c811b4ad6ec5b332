// SPDX-License-Identifier: Apache-2.0
/**
 * `npm run simulate`: the commit of a migration (src/commit) under faults, one schedule for each seed.
 *
 *     npm run simulate -- [--seeds N] [--seed S] [--from S]
 *
 * Exit code 1 when a schedule violates an invariant: its seed and its trace are printed.
 */

import { Command, InvalidArgumentError } from 'commander';
import { runSchedule } from './schedule.js';

interface Options {
  seeds: number;
  seed?: number;
  from: number;
}

function number(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError('Not a number below 1,000,000,000.');
  return Number(text);
}

function parseOptions(): Options {
  return new Command('simulate')
    .description('The commit of a migration under faults')
    .option('--seeds <n>', 'how many schedules', number, 20_000)
    .option('--from <seed>', 'the first seed', number, 1)
    .option('--seed <seed>', 'this schedule only, with its trace', number)
    .parse()
    .opts<Options>();
}

function report(seed: number): number {
  const { violation, trace } = runSchedule(seed, { traced: true });
  for (const line of trace) console.log(line);
  console.log(violation === undefined ? `seed ${seed}: all as it must be` : `seed ${seed}: ${violation}`);
  return violation === undefined ? 0 : 1;
}

function main(): number {
  const { seeds, seed, from } = parseOptions();
  if (seed !== undefined) return report(seed);
  const counts = new Map<string, number>();
  const started = process.hrtime.bigint();
  for (let next = from; next < from + seeds; next++) {
    const { violation, features } = runSchedule(next);
    if (violation !== undefined) return report(next);
    for (const feature of features) counts.set(feature, (counts.get(feature) ?? 0) + 1);
  }
  const seconds = Number(process.hrtime.bigint() - started) / 1e9;
  for (const [feature, count] of [...counts].sort()) console.log(`${String(count).padStart(9)}  ${feature}`);
  console.log(`${seeds} schedules from seed ${from}, no violation, ${seconds.toFixed(1)} s`);
  return 0;
}

process.exitCode = main();
