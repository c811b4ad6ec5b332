// SPDX-License-Identifier: Apache-2.0
/** A scratch device served on real sockets, with clients that the test's end closes. */

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  Client,
  type ClientOptions,
  MigrationClient,
  RegionMigrationClient,
} from '../../src/client/index.js';
import { withoutLimit } from '../../src/logging/index.js';
import { DeviceRuntime, type RuntimeOptions } from '../../src/runtime/index.js';
import { type ServedDevice, Server, type ServerOptions } from '../../src/server/index.js';
import { openFds } from './closes.js';
import { RawClient } from './raw-client.js';
import { ScratchDevice, type ScratchOptions } from './scratch-device.js';

export interface Test {
  teardown(work: () => unknown): void;
}

/** A folder for sockets that goes with the test. */
export function socketFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'devstate-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

export class Served {
  readonly log: string[] = [];
  readonly #clients: { close(): void }[] = [];
  readonly server: Server;
  readonly path: string;
  readonly migrationPath: string;

  constructor(t: Test, served: ServedDevice, options: Partial<ServerOptions> = {}) {
    const folder = socketFolder(t);
    this.path = join(folder, 'vmm');
    this.migrationPath = join(folder, 'manager');
    this.server = new Server({
      device: served,
      socketPath: this.path,
      migrationSocketPath: this.migrationPath,
      log: withoutLimit((level, message) => this.log.push(`${level}: ${message}`)),
      ...options,
    });
    t.teardown(async () => {
      for (const client of this.#clients) client.close();
      await this.server.close();
    });
  }

  /** A VMM. */
  async vmm(options: ClientOptions = {}): Promise<Client> {
    const client = await Client.connect(this.path, options);
    this.#clients.push(client);
    return client;
  }

  async manager(options: ClientOptions = {}): Promise<MigrationClient> {
    const client = new MigrationClient(await Client.connect(this.migrationPath, options));
    this.#clients.push(client);
    return client;
  }

  /** A client of migration v1, at either socket. */
  async region(
    path = this.migrationPath,
    options: ClientOptions & { map?: boolean } = {},
  ): Promise<RegionMigrationClient> {
    const client = await Client.connect(path, options);
    this.#clients.push(client);
    const region = await RegionMigrationClient.open(client, options);
    if (region === undefined) throw new Error('no migration region');
    this.#clients.push(region);
    return region;
  }

  /** A client that says what no honest one would. */
  async raw(path = this.path): Promise<RawClient> {
    const client = await RawClient.connect(path);
    this.#clients.push(client);
    return client;
  }
}

/** A scratch device, its runtime and its server. */
export function serveScratch(
  t: Test,
  options: ScratchOptions & Partial<ServerOptions> & Omit<RuntimeOptions, 'name'> = {},
): Served & { scratch: ScratchDevice } {
  const scratch = new ScratchDevice(options);
  const runtime = new DeviceRuntime(scratch, { ...options, name: 'scratch' });
  return Object.assign(new Served(t, runtime, options), { scratch });
}

/** Settles when `condition` holds; it is looked at once a turn of the event loop. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setImmediate(resolve));
}

// What is closed by chance, when garbage is collected, looks closed to a test that waits for it.
process.on('warning', (warning) => {
  if (warning.name === 'DevstateFdLeak') throw warning;
});

/** Open file descriptors and mappings of memory files of this process. */
export function resources(): { fds: number; maps: number } {
  const fds = openFds();
  const maps = readFileSync('/proc/self/maps', 'latin1').split('\n');
  return {
    fds,
    maps: maps.filter((line) => line.includes('memfd:')).length,
  };
}

/** What `work` rejects with: its errno if it has one, else its code; 0 when it does not reject. */
export async function outcome(work: Promise<unknown>): Promise<number | string> {
  try {
    await work;
    return 0;
  } catch (error) {
    const { errno, code, message } = error as { errno?: number; code?: string; message: string };
    if (code === 'DEVSTATE_E_REFUSED' && errno !== undefined) return errno;
    return code ?? errno ?? message;
  }
}
