// SPDX-License-Identifier: Apache-2.0
/** The programs that the benchmarks run: the plain C baseline, built on the spot, and devstate's own ends, each a process. */

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { DevstateError } from '../src/errors.js';

const run = promisify(execFile);
/** The compiled files of this folder, and the sources of the baseline. */
const here = dirname(fileURLToPath(import.meta.url));
const sources = join(here, '..', '..', 'bench', 'baseline');

/** Bytes of one MIG_DATA transfer. */
export const CHUNK = 1024 * 1024;
/** Bytes of device state that are moved. */
export const STATE_BYTES = 1024 * CHUNK;

/** A command line: C's or ours. */
export type Program = readonly string[];

/** Builds the plain C server and client into `folder`. @throws DEVSTATE_E_SYSTEM without a C compiler */
export async function buildBaseline(
  folder: string,
): Promise<{ server: Program; client: Program; copy: Program }> {
  const build = async (name: string): Promise<Program> => {
    const binary = join(folder, `c-${name}`);
    if (!existsSync(binary)) await run('cc', ['-O2', '-o', binary, join(sources, `${name}.c`)]);
    return [binary];
  };
  try {
    return { server: await build('server'), client: await build('client'), copy: await build('copy') };
  } catch (cause) {
    const message = 'cannot build the C programs of bench/baseline; is a C compiler (cc) installed?';
    throw new DevstateError('DEVSTATE_E_SYSTEM', message, { cause });
  }
}

/** Our counterpart of the C client. */
export const ourClient: Program = [process.execPath, join(here, 'state-client.js')];
/** Our server with a device of {@link STATE_BYTES} of state: `SOCKET MIGRATION_SOCKET STATE_BYTES [mapped]`. */
export const ourServer: Program = [process.execPath, join(here, 'state-server.js')];
/** Our manager: `SOURCE DESTINATION`. */
export const ourManager: Program = [process.execPath, join(here, 'state-manager.js')];

/** Our relay: `LISTEN SERVER`. */
export const ourRelay: Program = [process.execPath, join(here, 'state-relay.js')];

/** A program that serves until it is ended. */
export class Running {
  readonly process: ChildProcess;

  private constructor(child: ChildProcess) {
    this.process = child;
  }

  /** Starts it and waits for its first line on stdout: it listens. */
  static async start(program: Program, args: readonly string[]): Promise<Running> {
    const [command = '', ...leading] = program;
    const child = spawn(command, [...leading, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
    const ended = once(child, 'exit').then(() => {
      throw new DevstateError('DEVSTATE_E_INTERNAL', `${command} ended before it listened`);
    });
    ended.catch(() => {});
    await Promise.race([once(child.stdout, 'data'), ended]);
    return new Running(child);
  }

  /** Most memory that it ever had resident, bytes. */
  get peakRss(): number {
    return peakRss(this.process.pid!);
  }

  async end(): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const exit = once(this.process, 'exit');
    this.process.kill('SIGTERM');
    await exit;
  }
}

/** VmHWM of a process, bytes. */
export function peakRss(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
}

/** Runs a program to its end; the JSON that it prints. */
export async function measure<T>(program: Program, args: readonly string[]): Promise<T> {
  const [command = '', ...leading] = program;
  const { stdout } = await run(command, [...leading, ...args], { maxBuffer: 1 << 20 });
  return JSON.parse(stdout) as T;
}
