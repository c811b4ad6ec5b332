// SPDX-License-Identifier: Apache-2.0
/** The relay in front of libvfio-user's sample servers, which have no migration socket and end when their client leaves. */

import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Client, MigrationClient } from '../../src/client/index.js';
import { RegionMigrationClient } from '../../src/client/index.js';
import {
  DmaMapFlag,
  IrqSetFlag,
  MigrationState,
  PciIrq,
  PciRegion,
  RegionInfoFlag,
} from '../../src/wire/index.js';
import { devstate } from '../e2e/harness/devstate-process.js';
import { RelayBed } from '../relay/support.js';
import { eventfd, MemoryPeer, memfd, signals } from '../support/memory.js';
import { resources, until } from '../support/served.js';
import { runSampleClientAt, SampleServer } from './libvfio-user.js';

const { RUNNING, STOP, STOP_COPY, RESUMING } = MigrationState;
const BAR1 = 0x3000;
const READ_WRITE = DmaMapFlag.READ | DmaMapFlag.WRITE;
const VENDOR_AND_DEVICE = [0xad, 0xde, 0xef, 0xbe];

const { DEVSTATE_LIBVFIO_USER_V1: buildV1, DEVSTATE_LIBVFIO_USER_V2: buildV2 } = process.env;

/** Somebody who has set the alarm of a sample device, and filled its memory, through a relay. */
class Guest {
  readonly memory = memfd(8192);
  readonly intx = eventfd();

  private constructor(
    readonly bed: RelayBed,
    readonly client: Client,
  ) {}

  static async start(t: Test, server: SampleServer): Promise<Guest> {
    const bed = new RelayBed(t, { serverPath: server.socket, trap: true });
    const guest = new Guest(bed, await bed.vmm());
    t.teardown(() => {
      guest.memory.close();
      guest.intx.close();
    });
    await guest.map(0);
    await guest.client.assignEventfds(PciIrq.INTX, [guest.intx]);
    return guest;
  }

  releaseInterrupt(): Promise<void> {
    const flags = IrqSetFlag.DATA_NONE | IrqSetFlag.ACTION_TRIGGER;
    return this.client.setIrqs({ flags, index: PciIrq.INTX, start: 0, count: 0 });
  }

  map(page: number): Promise<void> {
    const at = page * 4096;
    return this.client.dmaMap({ flags: READ_WRITE, offset: at, address: at, size: 4096 }, this.memory);
  }

  setAlarm(inSeconds: number): Promise<void> {
    const bytes = Buffer.alloc(8);
    bytes.writeBigInt64LE(BigInt(Math.floor(Date.now() / 1000) + inSeconds));
    return this.client.regionWrite(0, 0, bytes);
  }

  async fill(): Promise<Uint8Array> {
    const bytes = Uint8Array.from({ length: BAR1 }, (_, i) => (i * 13 + (i >> 8)) & 0xff);
    await this.client.regionWrite(1, 0, bytes);
    return bytes;
  }

  async bar1(): Promise<Uint8Array> {
    const bytes = new Uint8Array(BAR1);
    await this.client.regionRead(1, 0, bytes);
    return bytes;
  }

  async config(offset: number, length: number): Promise<number[]> {
    const bytes = new Uint8Array(length);
    await this.client.regionRead(PciRegion.CONFIG, offset, bytes);
    return [...bytes];
  }
}

for (const [protocol, build] of [
  ['v1', buildV1],
  ['v2', buildV2],
] as const) {
  const skip =
    build === undefined &&
    `DEVSTATE_LIBVFIO_USER_${protocol.toUpperCase()} is not set, see docs/conformance.md`;
  const start = (t: Test, socket?: string) => SampleServer.start(t, build ?? '', socket);
  const managerOf = async (guest: Guest): Promise<MigrationClient> => {
    const manager = await guest.bed.manager();
    if (protocol === 'v2') return manager;
    const region = await RegionMigrationClient.open(manager.client, { map: false });
    if (region === undefined) throw new Error('no migration region');
    return region;
  };

  t.test(`${protocol}: a sample server has a migration socket`, { skip }, async (t) => {
    const guest = await Guest.start(t, await start(t));
    const { client, bed } = guest;
    t.equal((await client.regionInfo(1)).flags & RegionInfoFlag.MMAP, 0);
    await guest.setAlarm(1000);
    const bytes = await guest.fill();
    const saved = join(bed.folder, 'saved');
    const socket = ['--migration-socket', bed.migrationPath, '--unproven'];
    t.match(await devstate('save', ...socket, '-o', saved), { code: 0, stderr: /saved 12.0 KiB/ });
    t.equal(statSync(saved).size, BAR1 + 8);
    t.ok(readFileSync(saved).subarray(0, BAR1).equals(bytes));
    // It continues, and is given the same again.
    await client.regionWrite(1, 0, new Uint8Array(BAR1));
    t.match(await devstate('load', ...socket, saved), { code: 0, stderr: /loaded 12.0 KiB/ });
    t.same(await guest.bar1(), bytes);
  });

  t.test(`${protocol}: from one sample server to another by a manager`, { skip }, async (t) => {
    const [from, to] = [await Guest.start(t, await start(t)), await Guest.start(t, await start(t))];
    await from.setAlarm(1000);
    const bytes = await from.fill();
    const [source, destination] = [await managerOf(from), await managerOf(to)];
    await from.client.regionWrite(PciRegion.CONFIG, 0x3c, Uint8Array.of(0x0b));
    await destination.setState(RESUMING);
    await source.setState(STOP_COPY);
    // The server refuses all of this now; the VMM is to notice nothing.
    t.same(await from.config(0, 4), VENDOR_AND_DEVICE);
    t.same(await from.config(0x3c, 1), [0x0b]);
    await from.client.regionWrite(PciRegion.CONFIG, 0x3c, Uint8Array.of(0x05));
    t.same(await from.config(0x3c, 1), [0x05]);
    await from.map(1);
    await from.client.assignEventfds(PciIrq.INTX, [from.intx]);

    const buffer = new Uint8Array(Math.min(source.maxChunk, 1 << 20));
    for (let size = await source.readData(buffer); size > 0; size = await source.readData(buffer))
      await destination.writeData(buffer.slice(0, size), { whole: protocol === 'v1' });
    await destination.commitLoad();
    await to.map(1);
    await destination.setState(RUNNING);
    t.same(await to.bar1(), bytes);
    await source.setState(RUNNING);
    t.same(await from.bar1(), bytes, 'the source could continue');
    t.same(await from.config(0x3c, 1), [0x05], 'with what was owed');
    // Both know of the page that was mapped while they were stopped.
    for (const { client } of [from, to]) await client.dmaUnmap({ flags: 0, address: 4096, size: 4096 });
    await source.setState(STOP);
  });

  t.test(`${protocol}: a sample server is replaced, and one that was killed`, { skip }, async (t) => {
    const first = await start(t);
    const guest = await Guest.start(t, first);
    await guest.setAlarm(1000);
    const bytes = await guest.fill();
    const steady = resources();
    let server = first;
    for (let i = 0; i < 3; i++) {
      const next = await start(t);
      const report = await guest.bed.relay.switchTo(next.socket, true);
      t.equal(report.stateBytes, BAR1 + 8);
      t.same(await guest.bar1(), bytes);
      t.equal((await server.ended).code, 0, 'the old one ends');
      server = next;
      t.comment(`held ${report.heldMs} ms`);
    }
    await server.kill();
    await guest.bed.said('is gone');
    const waiting = guest.bar1();
    await start(t, server.socket);
    t.same(await waiting, new Uint8Array(BAR1), 'another one, which begins anew');
    t.same(await guest.config(0, 4), VENDOR_AND_DEVICE);
    // Its interrupt and its memory are those of the first; it wants two ranges for its DMA.
    await guest.map(1);
    await guest.setAlarm(1);
    await until(() => signals(guest.intx) > 0);
    t.same(
      resources(),
      { ...steady, fds: steady.fds + 1 },
      'no fd is left but that of the page mapped since',
    );
    await guest.releaseInterrupt();
  });

  t.test(
    `${protocol}: another VMM, and another relay, before the same sample server`,
    { skip },
    async (t) => {
      const server = await start(t);
      const guest = await Guest.start(t, server);
      const { bed, client: first } = guest;
      await guest.setAlarm(1000);
      const bytes = await guest.fill();
      let manager = await managerOf(guest);
      const awaited = { action: 'await', timeoutMs: 30_000 } as const;
      await t.rejects(manager.setNextVmm(awaited), { message: /interrupts by INTx: behind a relay/ });
      await guest.releaseInterrupt();
      await manager.setNextVmm(awaited);
      const remote = new MemoryPeer();
      const second = await bed.vmm({ dma: remote.handler });
      const intx = eventfd();
      t.teardown(() => intx.close());
      t.ok((await second.regionInfo(1)).size > 0);
      const config = new Uint8Array(4);
      await second.regionRead(PciRegion.CONFIG, 0, config);
      t.same([...config], VENDOR_AND_DEVICE);
      const map = (page: number, position: number): Promise<void> => {
        const range = { flags: READ_WRITE, offset: position * 4096, address: page * 4096, size: 4096 };
        return second.dmaMap(range, guest.memory);
      };
      await map(0, 0);
      await map(1, 1);
      await second.assignEventfds(PciIrq.INTX, [intx]);
      await second.reset();
      // The sample insists on its state being read whenever it is stopped.
      await manager.setState(STOP_COPY);
      const buffer = new Uint8Array(Math.min(manager.maxChunk, 1 << 20));
      while ((await manager.readData(buffer)) > 0);
      await manager.setState(STOP);
      // The server takes neither memory nor interrupts of a device that is stopped: it is told when that runs.
      await manager.setNextVmm({ action: 'promote' });
      await manager.setState(RUNNING);
      await manager.setNextVmm({ action: 'commit' });
      await first.closed();
      const seen = new Uint8Array(BAR1);
      await second.regionRead(1, 0, seen);
      t.same(seen, bytes, 'no reset has reached the device');
      await until(() => signals(intx) > 0);

      const next = bed.successor();
      await bed.handOver(next.takeover);
      await bed.relay.ended;
      await second.regionRead(1, 0, seen);
      t.same(seen, bytes, 'nor has the server noticed that the relay is another one');
      // It wants two ranges for its DMA, and raises the interrupt of the VMM that has it now.
      const alarm = Buffer.alloc(8);
      alarm.writeBigInt64LE(BigInt(Math.floor(Date.now() / 1000) + 1));
      await second.regionWrite(0, 0, alarm);
      await until(() => signals(intx) > 0);
      t.equal(signals(guest.intx), 0);
      await until(() => remote.reads > 0);
      manager = await managerOf(guest);
      t.match(await manager.dmaMaps(), [{ address: 0 }, { address: 4096 }]);
      second.close();
      t.equal((await server.ended).code, 0, 'the server is left when the VMM has left');
    },
  );

  t.test(
    `${protocol}: the sample client, unmodified, at the sample server, unmodified`,
    { skip },
    async (t) => {
      const server = await start(t);
      const bed = new RelayBed(t, { serverPath: server.socket, mapping: true });
      const client = await runSampleClientAt(t, build ?? '', bed.listenPath);
      t.match(client.stdout, /INTx triggered!/, 'its interrupt');
      t.match(client.stdout, /setting device state to stop-and-copy/, 'it is its manager too');
      t.match(client.stdout, /starting destination server[\s\S]*INTx triggered!/, 'and has moved the device');
      t.equal(client.code, 0, client.stderr);
      t.equal((await server.ended).code, 0);
      t.same(
        bed.log.filter((line) => !line.startsWith('info')),
        [],
        'the relay has nothing to say',
      );
    },
  );
}
