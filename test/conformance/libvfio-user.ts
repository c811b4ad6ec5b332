// SPDX-License-Identifier: Apache-2.0
/** The samples of a libvfio-user that was built aside: its client against our server, its server for our client. */

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { Devstate } from '../e2e/harness/devstate-process.js';
import { MAIN } from '../support/main.js';
import { socketFolder, type Test, until } from '../support/served.js';

const run = promisify(execFile);
/** The client waits ten seconds; the rest is for a machine that has other things to do. */
const DEADLINE_MS = 50_000;

/** A program's output, and what it ended with, once all who had its output have ended. */
export interface Run {
  readonly stdout: string;
  readonly stderr: string;
  readonly code: number | null;
}

function collect(process: ChildProcess): { run: Promise<Run>; readonly stderr: string } {
  let [stdout, stderr] = ['', ''];
  process.stdout?.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  process.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const run = once(process, 'close').then(([code]) => ({ stdout, stderr, code: code as number | null }));
  return {
    run,
    get stderr() {
      return stderr;
    },
  };
}

/**
 * The sample client of `build` against `devstate serve sample`. The program that it starts as the destination, `server`
 * beside itself, is ours too; the first process becomes that one, and its child continues as the client.
 * @param options of `serve sample`, for both
 */
export async function runSampleClient(
  t: Test,
  build: string,
  options: readonly string[] = [],
): Promise<{ client: Run; source: Devstate }> {
  const folder = socketFolder(t);
  const socket = join(folder, 'sample');
  const serve = ['serve', 'sample', '--once', ...options, '--socket'];
  symlinkSync(join(build, 'samples/client'), join(folder, 'client'));
  const server = join(folder, 'server');
  // It is called as `server -v SOCKET`.
  const quoted = [process.execPath, MAIN, ...serve].map((word) => `'${word}'`).join(' ');
  writeFileSync(server, `#!/bin/sh\nexec ${quoted} "$2"\n`);
  chmodSync(server, 0o755);

  const source = new Devstate([...serve, socket]);
  t.teardown(() => source.end());
  await source.saysOnStderr(/"msg":"serving /);
  return { client: await runClient(t, folder, socket), source };
}

/** The sample client of `build` at a relay's socket; its own destination is the sample server beside it. */
export function runSampleClientAt(t: Test, build: string, socket: string): Promise<Run> {
  const folder = socketFolder(t);
  for (const name of ['client', 'server']) symlinkSync(join(build, 'samples', name), join(folder, name));
  return runClient(t, folder, socket);
}

/** `client` in `folder`. */
async function runClient(t: Test, folder: string, socket: string): Promise<Run> {
  // A group of its own: its child would outlive it.
  const client = spawn(join(folder, 'client'), [socket], {
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });
  const endAll = (): void => {
    try {
      if (client.pid !== undefined) process.kill(-client.pid, 'SIGKILL');
    } catch {
      // Nothing is left.
    }
  };
  t.teardown(endAll);
  // If the client ends before it has met the destination, that waits for ever: what was said so far tells why.
  const deadline = setTimeout(endAll, DEADLINE_MS);
  const run = await collect(client).run;
  clearTimeout(deadline);
  return run;
}

/** The sample server of a build, which serves one client and ends when that leaves. */
export class SampleServer {
  readonly socket: string;
  readonly #process: ChildProcess;
  readonly #output: ReturnType<typeof collect>;

  private constructor(t: Test, build: string, socket: string) {
    this.socket = socket;
    this.#process = spawn(join(build, 'samples/server'), ['-v', socket], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    t.teardown(() => this.#process.kill('SIGKILL'));
    this.#output = collect(this.#process);
  }

  /** @param socket where it is to listen, if that matters */
  static async start(
    t: Test,
    build: string,
    socket = join(socketFolder(t), 'sample'),
  ): Promise<SampleServer> {
    const server = new SampleServer(t, build, socket);
    await until(() => isListening(server.socket));
    return server;
  }

  /** Ends it as a crash does; nothing is left at its path. */
  async kill(): Promise<void> {
    this.#process.kill('SIGKILL');
    await this.ended;
    rmSync(this.socket, { force: true });
  }

  /** Once its client has left. */
  get ended(): Promise<Run> {
    return this.#output.run;
  }

  /** What it has said so far. */
  get log(): string {
    return this.#output.stderr;
  }
}

/**
 * The sample server with two numbers changed, in a build of its own: QEMU takes no BAR of 12 KiB, so its BAR 1 has 16;
 * and its alarm is set, without which it would not run again after a migration.
 * @returns what stands for the build
 */
export async function buildSampleForQemu(t: Test, build: string): Promise<string> {
  const folder = socketFolder(t);
  const ninja = readFileSync(join(build, 'build.ninja'), 'utf8');
  const path = /^build samples\/server\.p\/server\.c\.o: \S+ (\S+)/m.exec(ninja)?.[1];
  if (path === undefined) throw new Error(`${build} has no sample server`);
  const source = resolve(build, path);
  const root = dirname(dirname(source));
  const changed = readFileSync(source, 'utf8')
    .replace('bar1_size = 0x3000', 'bar1_size = 0x4000')
    .replace('.iov_base  = (void*)0x2000', '.iov_base  = (void*)0x3000')
    .replace(/(server_data\.bar1_size = bar1_size;)/, '$1 server_data.bar0 = time(NULL) + 1000;');
  mkdirSync(join(folder, 'samples'));
  writeFileSync(join(folder, 'server.c'), changed);
  const includes = ['include', 'lib', 'samples'].map((name) => `-I${join(root, name)}`);
  const library = [`-L${join(build, 'lib')}`, '-lvfio-user', `-Wl,-rpath,${join(build, 'lib')}`];
  const output = ['-o', join(folder, 'samples/server')];
  await run('cc', ['-D_GNU_SOURCE', ...includes, join(folder, 'server.c'), ...library, ...output]);
  return folder;
}

/** Without connecting: it would take that for its client. */
function isListening(path: string): boolean {
  const accepting = '00010000'; // __SO_ACCEPTCON
  return readFileSync('/proc/net/unix', 'utf8')
    .split('\n')
    .some((line) => line.endsWith(` ${path}`) && line.split(/\s+/)[3] === accepting);
}
