// SPDX-License-Identifier: Apache-2.0
/** NVMe through the built-in driver and `devstate serve nvme`: queues in shared memory, MSI-X by eventfd, image cached. */

import { join } from 'node:path';
import { type DmaBuffer, GuestMachine, NvmeDriver } from '../../src/guest-driver/index.js';
import { serveNvme } from '../../test/e2e/harness/devstate-process.js';
import { type Section, summarise } from './report.js';

const MIB = 1024 * 1024;
const IMAGE = 256 * MIB;
const ROUND_MS = 1000;
const BLOCK = 4096;

export const nvme: Section = {
  name: 'nvme',
  title: 'NVMe through the built-in driver, one second a round',
  async run({ rounds, folder }) {
    const socket = join(folder, 'nvme');
    const server = await serveNvme({
      socket,
      migrationSocket: `${socket}.migration`,
      image: join(folder, 'nvme.img'),
      args: ['--size', String(IMAGE)],
    });
    try {
      const machine = await GuestMachine.start(socket, { memoryBytes: 64 * MIB });
      const driver = await NvmeDriver.start(machine, { queueEntries: 128 });
      const big = Array.from({ length: 4 }, () => driver.allocate(MIB));
      const sequential = (action: 'read' | 'write') => throughput(driver, big, action);
      await sequential('write'); // Every block exists from now on.
      for (let at = 0; at < IMAGE; at += MIB) await driver.write(at / driver.namespace.blockSize, big[0]!);
      const results = {
        d1: [] as number[],
        d32: [] as number[],
        read: [] as number[],
        write: [] as number[],
      };
      for (let round = 0; round < rounds; round++) {
        results.d1.push(await randomReads(driver, 1));
        results.d32.push(await randomReads(driver, 32));
        results.read.push(await sequential('read'));
        results.write.push(await sequential('write'));
      }
      await driver.shutdown();
      machine.close();
      return [
        summarise('4 KiB random read, depth 1', 'IOPS', results.d1),
        summarise('4 KiB random read, depth 32', 'IOPS', results.d32),
        summarise('1 MiB sequential read, depth 4', 'MB/s', results.read),
        summarise('1 MiB sequential write, depth 4', 'MB/s', results.write),
      ];
    } finally {
      await server.end('SIGTERM');
    }
  },
};

/** Operations per second of `work`, as many at a time as there are buffers, for one round. */
async function perSecond(
  buffers: readonly DmaBuffer[],
  work: (buffer: DmaBuffer, turn: number) => Promise<void>,
): Promise<number> {
  let turns = 0;
  const start = performance.now();
  const worker = async (buffer: DmaBuffer) => {
    while (performance.now() - start < ROUND_MS) await work(buffer, turns++);
  };
  await Promise.all(buffers.map(worker));
  return (turns * 1000) / (performance.now() - start);
}

async function randomReads(driver: NvmeDriver, depth: number): Promise<number> {
  const buffers = Array.from({ length: depth }, () => driver.allocate(BLOCK));
  const perBlock = BLOCK / driver.namespace.blockSize;
  const result = await perSecond(buffers, (buffer) =>
    driver.read(Math.floor(Math.random() * (IMAGE / BLOCK)) * perBlock, buffer),
  );
  for (const buffer of buffers) buffer.free();
  return result;
}

/** MB/s. */
async function throughput(
  driver: NvmeDriver,
  buffers: readonly DmaBuffer[],
  action: 'read' | 'write',
): Promise<number> {
  const blocks = MIB / driver.namespace.blockSize;
  const rate = await perSecond(buffers, (buffer, turn) =>
    driver[action]((turn % (IMAGE / MIB)) * blocks, buffer),
  );
  return (rate * MIB) / 1e6;
}
