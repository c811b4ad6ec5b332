// SPDX-License-Identifier: Apache-2.0
/** A relay in this process, between clients and servers of the test. */

import { join } from 'node:path';
import { Client, type ClientOptions, MigrationClient } from '../../src/client/index.js';
import { Relay, type RelayOptions } from '../../src/relay/index.js';
import { serveScratch, socketFolder, type Test, until } from '../support/served.js';

export class RelayBed {
  readonly folder: string;
  readonly serverPath: string;
  readonly listenPath: string;
  readonly migrationPath: string;
  readonly log: string[] = [];
  readonly relay: Relay;
  /** In the order in which they were started. */
  readonly servers: ReturnType<typeof serveScratch>[] = [];
  readonly #test: Test;

  constructor(t: Test, options: Partial<RelayOptions> = {}) {
    this.#test = t;
    this.folder = socketFolder(t);
    this.serverPath = options.serverPath ?? join(this.folder, 'server');
    this.listenPath = join(this.folder, 'vmm');
    this.migrationPath = join(this.folder, 'manager');
    this.relay = new Relay({
      listenPath: this.listenPath,
      migrationSocketPath: this.migrationPath,
      log: (level, message) => this.log.push(`${level}: ${message}`),
      ...options,
      serverPath: this.serverPath,
    });
    t.teardown(() => this.relay.close());
  }

  /** A scratch device at the server's path, without a migration socket that anybody uses. */
  serveScratch(options: Parameters<typeof serveScratch>[1] = {}): ReturnType<typeof serveScratch> {
    const served = serveScratch(this.#test, { socketPath: this.serverPath, ...options });
    this.servers.push(served);
    return served;
  }

  async vmm(options: ClientOptions = {}): Promise<Client> {
    const client = await Client.connect(this.listenPath, options);
    this.#test.teardown(() => client.close());
    return client;
  }

  async manager(): Promise<MigrationClient> {
    const client = new MigrationClient(await Client.connect(this.migrationPath));
    this.#test.teardown(() => client.close());
    return client;
  }

  /** Settles when a line of the log has `text`. */
  said(text: string): Promise<void> {
    return until(() => this.log.some((line) => line.includes(text)));
  }
}
