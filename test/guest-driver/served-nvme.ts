// SPDX-License-Identifier: Apache-2.0
/** An NVMe device on a server in this process, for the tests of the guest driver. */

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { Client, MigrationClient } from '../../src/client/index.js';
import type { ParameterValue } from '../../src/device/index.js';
import { createBirchNvme } from '../../src/devices/nvme/birch/index.js';
import { createAlderNvme, ImageFile } from '../../src/devices/nvme/index.js';
import { DeviceRuntime } from '../../src/runtime/index.js';
import { Server } from '../../src/server/index.js';

export interface Served {
  readonly socketPath: string;
  readonly server: Server;
  readonly manager: MigrationClient;
}

export interface ServeOptions {
  /** Whose implementation. Default: alder's. */
  readonly vendor?: 'alder' | 'birch';
  readonly parameters?: Readonly<Record<string, ParameterValue>>;
  /** Waits for a migration: does not lock the image. */
  readonly incoming?: boolean;
}

/** A folder with one image of `size` bytes, and servers on it; all is gone when the test ends. */
export class TestBed {
  readonly #folder = mkdtempSync(join(tmpdir(), 'guest-driver-'));
  readonly #test: Test;
  readonly #size: number;
  #servers = 0;

  constructor(test: Test, size = 16 * 1024 * 1024) {
    this.#test = test;
    this.#size = size;
    test.teardown(() => rmSync(this.#folder, { recursive: true }));
  }

  get image(): string {
    return join(this.#folder, 'image');
  }

  /** What is in the image file. */
  content(): Uint8Array {
    return new Uint8Array(readFileSync(this.image));
  }

  async serve(options: ServeOptions = {}): Promise<Served> {
    const name = `server-${++this.#servers}`;
    const lock = options.incoming !== true;
    const image = ImageFile.open(
      lock ? { path: this.image, size: this.#size, lock } : { path: this.image, lock },
    );
    const create = options.vendor === 'birch' ? createBirchNvme : createAlderNvme;
    const device = create({ image, parameters: options.parameters ?? {} });
    const socketPath = join(this.#folder, name);
    const migrationSocketPath = `${socketPath}.migration`;
    const runtime = new DeviceRuntime(device, { name });
    const server = new Server({ device: runtime, socketPath, migrationSocketPath });
    const manager = new MigrationClient(await Client.connect(migrationSocketPath));
    this.#test.teardown(async () => {
      manager.close();
      await server.close();
      await image.close();
    });
    return { socketPath, server, manager };
  }
}
