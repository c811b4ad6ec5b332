// SPDX-License-Identifier: Apache-2.0
/** Servers that hand an NVMe device to each other within this process, for tests of the handoff with a guest that works. */

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { Client, MigrationClient } from '../../src/client/index.js';
import type { Device } from '../../src/device/index.js';
import { createBirchNvme } from '../../src/devices/nvme/birch/index.js';
import { createAlderNvme, ImageFile } from '../../src/devices/nvme/index.js';
import { type HandoffReport, takeoverPaths } from '../../src/handoff/index.js';
import { DeviceRuntime } from '../../src/runtime/index.js';
import { Server } from '../../src/server/index.js';

export type Vendor = 'alder' | 'birch';

export interface Member {
  readonly server: Server;
  readonly device: Device;
  readonly image: ImageFile;
}

/** One device, its image, and the servers that have it one after the other. */
export class Succession {
  readonly directory = mkdtempSync(join(tmpdir(), 'succession-'));
  readonly socketPath = join(this.directory, 'vmm');
  readonly migrationSocketPath = join(this.directory, 'managers');
  readonly #size: number;
  readonly #members: Member[] = [];
  readonly log: string[] = [];
  #count = 0;

  constructor(t: Test, size = 16 * 1024 * 1024) {
    this.#size = size;
    t.teardown(async () => {
      for (const { server, image } of this.#members) {
        await server.close();
        await image.close();
      }
      rmSync(this.directory, { recursive: true });
    });
  }

  get imagePath(): string {
    return join(this.directory, 'image');
  }

  content(): Uint8Array {
    return new Uint8Array(readFileSync(this.imagePath));
  }

  /** The first of them. */
  start(vendor: Vendor): Member {
    return this.#add(vendor, { path: this.imagePath, size: this.#size, lock: true });
  }

  /** One that waits to take over. */
  successor(vendor: Vendor): Member & { takeover: string } {
    const takeover = mkdtempSync(join(this.directory, 's'));
    return { ...this.#add(vendor, { path: this.imagePath, lock: false }, takeover), takeover };
  }

  #add(vendor: Vendor, options: Parameters<typeof ImageFile.open>[0], takeover?: string): Member {
    const image = ImageFile.open(options);
    const device = (vendor === 'birch' ? createBirchNvme : createAlderNvme)({ image });
    const name = `${vendor}-${this.#count++}`;
    const log = (_level: string, message: string): void => {
      this.log.push(`${name}: ${message}`);
    };
    const server = new Server({
      device: new DeviceRuntime(device, { name, log }),
      socketPath: this.socketPath,
      migrationSocketPath: this.migrationSocketPath,
      ...(takeover === undefined ? {} : { takeover }),
      log,
    });
    const member = { server, device, image };
    this.#members.push(member);
    return member;
  }

  /** A manager of whoever serves now. */
  async manager(): Promise<MigrationClient> {
    return new MigrationClient(await Client.connect(this.migrationSocketPath));
  }

  /** Hands over from whoever serves to a successor. */
  async handOver(
    takeover: string,
    formatName: string,
    timeouts: Record<string, number> = {},
  ): Promise<HandoffReport> {
    const manager = await this.manager();
    try {
      const format = (await manager.formats())?.find(({ name }) => name === formatName);
      if (format === undefined) throw new Error(`no format ${formatName}`);
      const { handoff: socket } = takeoverPaths(takeover);
      const request = { socket, format: { uuid: format.uuid, ...format.version }, timeouts };
      return await manager.handOver(request, 20_000);
    } finally {
      manager.close();
    }
  }
}
