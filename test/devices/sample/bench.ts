// SPDX-License-Identifier: Apache-2.0
/** A sample device on real sockets, with a VMM whose memory is some pages of a file, and who counts what it is asked for. */

import { readSync, writeSync } from 'node:fs';
import { type Client, MigrationClient } from '../../../src/client/index.js';
import { SampleDevice } from '../../../src/devices/sample/index.js';
import { DeviceRuntime, type RuntimeOptions } from '../../../src/runtime/index.js';
import type { Fd } from '../../../src/transport/index.js';
import { DmaMapFlag, IrqSetFlag, PciIrq } from '../../../src/wire/index.js';
import { eventfd, memfd, signals } from '../../support/memory.js';
import { Served, type Test } from '../../support/served.js';

export const PAGE = 4096;
/** What the device writes when its alarm rings. */
export const PATTERN = Buffer.concat(['A', 'B', 'C', 'D'].map((letter) => Buffer.alloc(1024, letter)));

/** Messages of one exercise, 1 KiB each. */
const MESSAGES = 8;

export const now = (): number => Math.floor(Date.now() / 1000);

export class Vmm {
  /** Accesses that came as messages: `read` or `write`, address, length. */
  readonly messages: [string, number, number][] = [];
  #exercised = (): void => {};

  private constructor(
    readonly served: Served,
    readonly client: Client,
    /** Migration on the same connection, as a VMM without a manager does it. */
    readonly migration: MigrationClient,
    readonly memory: Fd,
    readonly intx: Fd,
    /** What the device has said. */
    readonly log: readonly string[],
  ) {}

  /** A device, and a VMM that has mapped `pages` pages at addresses from 0, each a range of its own. */
  static async start(t: Test, pages = 4, options: Partial<RuntimeOptions> = {}): Promise<Vmm> {
    const log: string[] = [];
    const device = new SampleDevice();
    t.teardown(() => device.close());
    const served = new Served(
      t,
      new DeviceRuntime(device, {
        name: 'sample',
        log: (_level, message) => log.push(message),
        ...options,
      }),
    );
    const memory = memfd(PAGE * Math.max(pages, 1));
    const intx = eventfd();
    t.teardown(() => {
      memory.close();
      intx.close();
    });
    const client = await served.vmm({
      capabilities: { maxDataXferSize: 1024 },
      dma: {
        read: (address, target) => vmm.#message('read', address, target),
        write: (address, source) => vmm.#message('write', address, source),
      },
    });
    const vmm = new Vmm(served, client, new MigrationClient(client), memory, intx, log);
    for (let page = 0; page < pages; page++) {
      const at = page * PAGE;
      const map = { flags: DmaMapFlag.READ | DmaMapFlag.WRITE, offset: at, address: at, size: PAGE };
      await client.dmaMap(map, memory);
    }
    await client.assignEventfds(PciIrq.INTX, [intx]);
    return vmm;
  }

  #message(kind: 'read' | 'write', address: number, bytes: Uint8Array): void {
    this.messages.push([kind, address, bytes.length]);
    if (this.messages.length % MESSAGES === 0) this.#exercised();
    if (kind === 'read') readSync(this.memory.number, bytes, 0, bytes.length, address);
    else writeSync(this.memory.number, bytes, 0, bytes.length, address);
  }

  /** Sets the alarm, and settles when the device has been through with guest memory. */
  async alarm(second: number): Promise<void> {
    const done = this.exercised();
    await this.setAlarm(second);
    await done;
  }

  /** Settles when the device has been through with guest memory once more. */
  exercised(): Promise<void> {
    return new Promise((resolve) => {
      this.#exercised = resolve;
    });
  }

  page(index: number): Uint8Array {
    const bytes = new Uint8Array(PAGE);
    readSync(this.memory.number, bytes, 0, PAGE, index * PAGE);
    return bytes;
  }

  async setAlarm(second: number): Promise<void> {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigInt64(0, BigInt(second), true);
    await this.client.regionWrite(0, 0, bytes);
  }

  /** BAR 0 as it reads: seconds since the alarm. */
  async sinceAlarm(): Promise<number> {
    const bytes = new Uint8Array(8);
    await this.client.regionRead(0, 0, bytes);
    return Number(new DataView(bytes.buffer).getBigInt64(0, true));
  }

  async bar1(): Promise<Uint8Array> {
    const bytes = new Uint8Array(3 * PAGE);
    await this.client.regionRead(1, 0, bytes);
    return bytes;
  }

  /** SET_IRQS of no vectors: INTx has no listener. */
  disableInterrupt(): Promise<void> {
    const flags = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER;
    return this.client.setIrqs({ flags, index: PciIrq.INTX, start: 0, count: 0 });
  }

  interrupts(): number {
    return signals(this.intx);
  }
}
