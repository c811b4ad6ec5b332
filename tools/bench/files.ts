// SPDX-License-Identifier: Apache-2.0
/**
 * The commands that read blobs, on one of 4 GiB in memory (tmpfs): real state of a controller, and records that a newer
 * version may have added. Beside them what `dd` (to /dev/null) and `cp` take for the same bytes.
 */

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, statfsSync, statSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { decodeEnvelope, EnvelopeEncoder, RecordFlag } from '../../src/formats/index.js';
import { OutputFile } from '../../src/operations/index.js';
import { devstate, serveNvme } from '../../test/e2e/harness/devstate-process.js';
import { MAIN } from '../../test/support/main.js';
import { peakRss } from './processes.js';
import { type Bound, type Result, type Section, summarise } from './report.js';

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;
const BLOB_LENGTH = 4 * GIB;
const RECORD_LENGTH = MIB;
/** A type that the format does not have yet. */
const LATER_TYPE = 0x0001_f000;
const RAM_DISK = '/dev/shm';
/** How often a process is asked for its peak, ms: it cannot be once it has ended. */
const SAMPLE_MS = 5;

const RATE: Bound = { of: 'value', at: 'least', limit: (GIB / 1e6) | 0 };
const MEMORY: Bound = { of: 'value', at: 'most', limit: 150 };

interface Ran {
  /** Bytes of the blob each second, MB/s. */
  readonly rate: number;
  /** MiB. */
  readonly peak: number;
}

export const files: Section = {
  name: 'files',
  title: 'inspect, verify and convert of a blob of 4 GiB in memory; the baseline is dd, and cp',
  async run({ rounds, folder, note }) {
    if (!existsSync(RAM_DISK) || freeBytes() < 2.5 * BLOB_LENGTH) {
      note(`left out: ${RAM_DISK} has no room for 10 GiB`);
      return [];
    }
    const directory = await mkdtemp(join(RAM_DISK, 'devstate-bench-'));
    try {
      const blob = join(directory, 'blob');
      await writeBlob(blob, await saveState(folder));
      const copy = join(directory, 'copy');
      const read = ['dd', `if=${blob}`, 'of=/dev/null', 'bs=1M', 'status=none'];
      const to = ['--to', 'org.devstate.nvme.birch'];
      return [
        ...(await compare(
          'inspect',
          ['inspect', blob, '-o', 'json'],
          ['dd', `if=${blob}`, 'of=/dev/null', 'bs=1M', 'status=none'],
          rounds,
        )),
        ...(await compare(
          'verify',
          ['verify', blob],
          ['dd', `if=${blob}`, 'of=/dev/null', 'bs=1M', 'status=none'],
          rounds,
        )),
        ...(await compare('convert', ['convert', ...to, blob, '-o', '/dev/null'], read, rounds)),
        // How fast new pages of tmpfs can be had is the machine's affair: cp shows it.
        ...(await compare(
          'convert, to a file',
          ['convert', ...to, blob, '-o', copy],
          ['cp', blob, copy],
          rounds,
          false,
        )),
      ];
    } finally {
      await rm(directory, { recursive: true });
    }
  },
};

function freeBytes(): number {
  const { bavail, bsize } = statfsSync(RAM_DISK);
  return bavail * bsize;
}

/** State of a controller that is served. */
async function saveState(folder: string): Promise<Uint8Array> {
  const socket = join(folder, 'files');
  const migrationSocket = `${socket}.migration`;
  const image = join(folder, 'files.img');
  const server = await serveNvme({ socket, migrationSocket, image, args: ['--size', '16M'] });
  try {
    const path = join(folder, 'files.state');
    await devstate('save', '--migration-socket', migrationSocket, '-o', path);
    return readFileSync(path);
  } finally {
    await server.end('SIGTERM');
  }
}

/** `state` with as many optional records more as make it long enough. */
async function writeBlob(path: string, state: Uint8Array): Promise<void> {
  const { header, records } = decodeEnvelope(state);
  const encoder = new EnvelopeEncoder(header);
  const output = await OutputFile.create(path);
  output.write(encoder.header());
  for (const { type, flags, payload } of records)
    for (const part of encoder.record(type, flags, payload)) output.write(part);
  const payload = new Uint8Array(RECORD_LENGTH);
  for (let at = 0; at < payload.length; at++) payload[at] = Math.random() * 256;
  while (output.bytes < BLOB_LENGTH) {
    for (const part of encoder.record(LATER_TYPE, RecordFlag.optional, payload)) output.write(part);
    await output.flush();
  }
  output.write(encoder.end());
  await output.finish();
}

async function compare(
  what: string,
  args: readonly string[],
  baseline: readonly string[],
  rounds: number,
  isBound = true,
): Promise<Result[]> {
  const ours: Ran[] = [];
  const theirs: number[] = [];
  const blob = args.find((arg) => arg.endsWith('/blob')) ?? '';
  // New processes each time: a peak is never forgotten.
  for (let round = 0; round < Math.min(rounds, 5); round++) {
    theirs.push(await baselineRate(baseline, blob));
    ours.push(await ourRate(args, blob));
  }
  const rates = ours.map(({ rate }) => rate);
  return [
    summarise(what, 'MB/s', rates, { baseline: theirs, ...(isBound ? { bound: RATE } : {}) }),
    summarise(
      `${what}: peak of resident memory`,
      'MiB',
      ours.map(({ peak }) => peak),
      { bound: MEMORY },
    ),
  ];
}

async function ourRate(args: readonly string[], blob: string): Promise<Ran> {
  const start = performance.now();
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: 'ignore' });
  let peak = 0;
  const timer = setInterval(() => {
    peak = Math.max(peak, peakRss(child.pid!) || 0);
  }, SAMPLE_MS);
  const [code] = (await once(child, 'exit')) as [number | null];
  clearInterval(timer);
  if (code !== 0) throw new Error(`devstate ${args[0]} ended with ${code}`);
  return { rate: rateOf(blob, performance.now() - start), peak: peak / MIB };
}

async function baselineRate([command = '', ...args]: readonly string[], blob: string): Promise<number> {
  const start = performance.now();
  await promisify(execFile)(command, args);
  return rateOf(blob, performance.now() - start);
}

function rateOf(blob: string, milliseconds: number): number {
  return statSync(blob).size / 1000 / milliseconds;
}
