// SPDX-License-Identifier: Apache-2.0
/** The programs that the benchmarks run: the plain C baseline, built on the spot, and devstate's own ends, each a process. */

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { DevstateError } from '../../src/errors.js';
import { PACKAGE_ROOT } from '../../src/package-root.js';

const run = promisify(execFile);
/** The compiled files of this folder, and the sources of the baseline. */
const here = dirname(fileURLToPath(import.meta.url));
const sources = join(PACKAGE_ROOT, 'tools/bench/baseline');

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

/** Servers that were started and not ended. */
const running = new Set<Running>();

/** Ends what a benchmark that failed has left. */
export async function endAll(): Promise<void> {
  await Promise.all([...running].map((server) => server.end()));
}

/** Last of what a program has written to stderr, characters. */
const STDERR_KEPT = 4096;
/** Longest that a server takes to end when it is asked to, ms. */
const END_MS = 10_000;

/** A program that serves until it is ended. An end of its own is an error of whatever waits for it. */
export class Running {
  readonly process: ChildProcess;
  /** Rejects if it ends without being told to. */
  readonly failed: Promise<never>;
  readonly #ended: Promise<void>;
  #told = false;

  private constructor(command: string, child: ChildProcess) {
    this.process = child;
    let stderr = '';
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      process.stderr.write(text);
      stderr = (stderr + text).slice(-STDERR_KEPT);
    });
    const closed = once(child, 'close');
    this.#ended = closed.then(() => {});
    this.failed = closed.then(([code, signal]) => {
      // For ever, for those who wait for nothing else any more.
      if (this.#told) return new Promise<never>(() => {});
      const how = code === null ? `was ended by ${signal}` : `ended with ${code}`;
      const said = stderr === '' ? '' : `: ${stderr.trimEnd()}`;
      throw new DevstateError('DEVSTATE_E_INTERNAL', `the server ${command} ${how}${said}`);
    });
    this.failed.catch(() => {});
    this.#ended.catch(() => {});
    running.add(this);
  }

  /** Starts it and waits for its first line on stdout: it listens. @throws DEVSTATE_E_INTERNAL if it ends before */
  static async start(program: Program, args: readonly string[]): Promise<Running> {
    const [command = '', ...leading] = program;
    const line = [command, ...leading, ...args].join(' ');
    const child = spawn(command, [...leading, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    const server = new Running(line, child);
    await Promise.race([once(child.stdout, 'data'), server.failed]);
    return server;
  }

  /** Most memory that it ever had resident, bytes. */
  get peakRss(): number {
    return peakRss(this.process.pid!);
  }

  /** @throws DEVSTATE_E_INTERNAL if it has to be killed */
  async end(): Promise<void> {
    this.#told = true;
    this.process.kill('SIGTERM');
    const timer = setTimeout(() => this.process.kill('SIGKILL'), END_MS);
    await this.#ended;
    clearTimeout(timer);
    running.delete(this);
    if (this.process.signalCode === 'SIGKILL')
      throw new DevstateError(
        'DEVSTATE_E_INTERNAL',
        `the server does not end by SIGTERM within ${END_MS} ms`,
      );
  }
}

/** VmHWM of a process, bytes. */
export function peakRss(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
}

/** Until the end of a process has been noticed, ms. */
const NOTICE_MS = 1000;
/** Longest that one measurement takes, ms. */
const MEASURE_MS = 900_000;

/**
 * Runs a program to its end; the JSON that it prints.
 * @throws DEVSTATE_E_INTERNAL when a server ends meanwhile, of whose answers the program may wait for ever
 */
export async function measure<T>(program: Program, args: readonly string[]): Promise<T> {
  const [command = '', ...leading] = program;
  const stop = new AbortController();
  const options = { maxBuffer: 1 << 20, timeout: MEASURE_MS, signal: stop.signal };
  const client = run(command, [...leading, ...args], options);
  const servers = [...running].map(({ failed }) => failed);
  try {
    const { stdout } = await Promise.race([client, ...servers]);
    return JSON.parse(stdout) as T;
  } catch (error) {
    stop.abort();
    await client.catch(() => {});
    // A client fails because its server has ended, which shows a little later; that says more.
    await Promise.race([...servers, delay(NOTICE_MS)]);
    throw error;
  }
}
