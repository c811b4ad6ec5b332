// SPDX-License-Identifier: Apache-2.0
/**
 * A private message bus. QEMU needs a real one: it asks it who queues for a name.
 *
 * A `dbus-daemon` that is installed is used as it is. Otherwise it comes with all it needs from Debian's packages,
 * unpacked into the cache and started through its own dynamic loader, as the provisioned QEMU is.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline/promises';
import type { Test } from 'tap';
import { cached } from '../../../tools/qemu/cache.js';
import { DebianRelease, unpack } from '../../../tools/qemu/debian.js';
import { run } from '../../../tools/qemu/run.js';
import { orSkip } from './require-qemu.js';

const RELEASE = 'trixie';
// A changed recipe needs a new name: an entry that exists is taken as complete.
const ENTRY = 'dbus-1';

/** Whoever may connect may do everything: only this machine's user can reach the socket. */
const CONFIGURATION = (path: string) => `<busconfig>
  <type>session</type>
  <listen>unix:path=${path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
  <limit name="max_completed_connections">64</limit>
</busconfig>
`;

/** The command of a `dbus-daemon`, or `undefined` once `t` is skipped (or failed). */
export function requireDbusDaemon(t: Test): Promise<readonly string[] | undefined> {
  return orSkip(t, 'dbus-daemon', obtainDbusDaemon);
}

async function obtainDbusDaemon(): Promise<readonly string[]> {
  try {
    await run('dbus-daemon', ['--version']);
    return ['dbus-daemon'];
  } catch {
    return unpackedDaemon(await cached(ENTRY, unpackDaemon));
  }
}

async function unpackDaemon(directory: string): Promise<void> {
  const work = await mkdtemp(join(tmpdir(), 'devstate-apt-'));
  try {
    const release = await DebianRelease.open(work, [RELEASE], (line) => process.stderr.write(`${line}\n`));
    for (const deb of await release.downloadClosure(['dbus-daemon'], RELEASE)) await unpack(deb, directory);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  const [program = '', ...args] = unpackedDaemon(directory);
  await run(program, [...args, '--version']);
}

/** Starts with the unpacked files alone, whatever the machine has. */
function unpackedDaemon(root: string): string[] {
  return [
    join(root, 'usr/lib64/ld-linux-x86-64.so.2'),
    ...['--library-path', join(root, 'usr/lib/x86_64-linux-gnu')],
    join(root, 'usr/bin/dbus-daemon'),
  ];
}

/** A running bus. */
export class PrivateBus {
  /** As D-Bus writes it: `unix:path=…`. */
  readonly address: string;
  readonly #process: ChildProcess;

  private constructor(address: string, process: ChildProcess) {
    this.address = address;
    this.#process = process;
  }

  /** Starts a bus whose socket is in `directory`; resolves when it listens. */
  static async start(command: readonly string[], directory: string): Promise<PrivateBus> {
    const configuration = join(directory, 'bus.conf');
    await writeFile(configuration, CONFIGURATION(join(directory, 'bus')));
    const [program = '', ...args] = command;
    const options = [`--config-file=${configuration}`, '--nofork', '--nopidfile', '--print-address=1'];
    const child = spawn(program, [...args, ...options], { stdio: ['ignore', 'pipe', 'pipe'] });
    let said = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-4096);
    });
    for await (const line of createInterface({ input: child.stdout })) return new PrivateBus(line, child);
    throw new Error(`dbus-daemon ended without saying where it listens: ${said}`);
  }

  async stop(): Promise<void> {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const exit = once(this.#process, 'exit');
    this.#process.kill('SIGTERM');
    await exit;
  }
}
