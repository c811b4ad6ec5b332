// SPDX-License-Identifier: Apache-2.0
/**
 * `npm run bench`: what devstate costs, next to a plain C server and client that are measured in the same run, in turn.
 *
 *     npm run bench -- [--only NAME]... [--rounds N] [-o json]
 *
 * Exit code 1 when a bound is missed.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command, InvalidArgumentError, Option } from 'commander';
import { asDevstateError } from '../../src/errors.js';
import { files } from './files.js';
import { handover } from './handover.js';
import { latency } from './latency.js';
import { memory } from './memory.js';
import { nvme } from './nvme.js';
import { pause, readPause } from './pause.js';
import { endAll } from './processes.js';
import { region } from './region.js';
import { relay } from './relay.js';
import { keepsBound, type Result, renderTable, type Section } from './report.js';
import { transfer } from './transfer.js';

const sections: readonly Section[] = [
  ...[latency, relay, transfer, region, memory, files, nvme],
  ...[pause, readPause, handover],
];

interface Options {
  only: string[];
  rounds: number;
  output: 'text' | 'json';
}

function parseOptions(): Options {
  const names = sections.map(({ name }) => name);
  const rounds = (text: string) => {
    if (!/^[1-9]\d{0,3}$/.test(text)) throw new InvalidArgumentError('Not a number of rounds.');
    return Number(text);
  };
  return new Command('bench')
    .addOption(new Option('--only <name...>', 'these benchmarks only').choices(names).default(names, 'all'))
    .option('--rounds <n>', 'rounds of each measurement', rounds, 7)
    .addOption(new Option('-o, --output <format>', 'text or json').choices(['text', 'json']).default('text'))
    .parse()
    .opts<Options>();
}

async function main(): Promise<void> {
  const { only, rounds, output } = parseOptions();
  const note = (text: string) => process.stderr.write(`bench: ${text}\n`);
  const print = (text: string) => {
    if (output === 'text') process.stdout.write(text);
  };
  const folder = mkdtempSync(join(tmpdir(), 'devstate-bench-'));
  const all: (Result & { bench: string; ok?: boolean })[] = [];
  try {
    print(
      `${cpus().length} × ${cpus()[0]?.model ?? 'CPU'}, Node ${process.versions.node}; values are medians of the rounds\n`,
    );
    for (const section of sections.filter(({ name }) => only.includes(name))) {
      note(`${section.name} …`);
      const results = await section.run({ rounds, folder, note });
      for (const result of results) {
        const ok = keepsBound(result);
        all.push({ bench: section.name, ...result, ...(ok === undefined ? {} : { ok }) });
      }
      print(`\n${section.title}\n${renderTable(results)}\n`);
    }
  } finally {
    await endAll();
    rmSync(folder, { recursive: true, force: true });
  }
  const missed = all.filter(({ ok }) => ok === false);
  if (output === 'json') process.stdout.write(`${JSON.stringify({ results: all }, undefined, 2)}\n`);
  for (const { bench, what } of missed) note(`bound missed: ${bench}: ${what.trim()}`);
  process.exitCode = missed.length > 0 ? 1 : 0;
}

try {
  await main();
} catch (error) {
  const { code, message, exitCode } = asDevstateError(error);
  process.stderr.write(`error: bench: ${message} (${code})\n`);
  process.exitCode = exitCode;
}
