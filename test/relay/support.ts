// SPDX-License-Identifier: Apache-2.0
/** A relay in this process, between clients and servers of the test. */

import { mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { Client, type ClientOptions, MigrationClient } from '../../src/client/index.js';
import { type HandoffReport, type HandoffStatus, takeoverPaths } from '../../src/handoff/index.js';
import { withoutLimit } from '../../src/logging/index.js';
import { Relay, RelayControl, type RelayOptions } from '../../src/relay/index.js';
import { RawClient } from '../support/raw-client.js';
import { serveScratch, socketFolder, type Test, until } from '../support/served.js';

export class RelayBed {
  readonly folder: string;
  readonly serverPath: string;
  readonly listenPath: string;
  readonly migrationPath: string;
  readonly controlPath: string;
  readonly log: string[] = [];
  readonly relay: Relay;
  /** In the order in which they were started. */
  readonly servers: ReturnType<typeof serveScratch>[] = [];
  readonly #test: Test;
  readonly #options: RelayOptions;

  constructor(t: Test, options: Partial<RelayOptions> = {}) {
    this.#test = t;
    this.folder = socketFolder(t);
    this.serverPath = options.serverPath ?? join(this.folder, 'server');
    this.listenPath = join(this.folder, 'vmm');
    this.migrationPath = join(this.folder, 'manager');
    this.controlPath = join(this.folder, 'control');
    this.#options = {
      listenPath: this.listenPath,
      migrationSocketPath: this.migrationPath,
      controlPath: this.controlPath,
      log: withoutLimit((level, message) => this.log.push(`${level}: ${message}`)),
      ...options,
      serverPath: this.serverPath,
    };
    this.relay = new Relay(this.#options);
    t.teardown(() => this.relay.close());
  }

  /** Another relay, which waits to take over. */
  successor(options: Partial<RelayOptions> = {}): Relay & { takeover: string } {
    const takeover = mkdtempSync(join(this.folder, 's'));
    const relay = new Relay({ ...this.#options, ...options, takeover });
    this.#test.teardown(() => relay.close());
    return Object.assign(relay, { takeover });
  }

  /** What whoever relays says of itself. */
  async status(): Promise<HandoffStatus> {
    const control = await RelayControl.connect(this.controlPath);
    try {
      return await control.handoffStatus();
    } finally {
      control.close();
    }
  }

  /** Has whoever relays hand over to a successor. */
  async handOver(takeover: string, timeouts: Record<string, number> = {}): Promise<HandoffReport> {
    const control = await RelayControl.connect(this.controlPath);
    try {
      return await control.handOver({ socket: takeoverPaths(takeover).handoff, timeouts }, 20_000);
    } finally {
      control.close();
    }
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

  async raw(): Promise<RawClient> {
    const client = await RawClient.connect(this.listenPath);
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
