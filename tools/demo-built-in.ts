// SPDX-License-Identifier: Apache-2.0
/**
 * The demonstration without QEMU: two `devstate serve nvme` processes, and the built-in guest, which does real queue I/O
 * through memory that it shares with the server, from one to the other while it writes.
 */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Client, MigrationClient } from '../src/client/index.js';
import { BLOCK_BYTES, BlockWriter, GuestMachine, moveGuest, NvmeDriver } from '../src/guest-driver/index.js';
import { type Devstate, serveNvme } from '../test/e2e/harness/devstate-process.js';
import { bytes, count, milliseconds, parts, tell } from './demo-output.js';

const MEMORY = 64 * 1024 * 1024;
const BLOCKS = 8192;
const DEPTH = 32;
/** Operations before the move, in each round of pre-copy, and after it. */
const OPERATIONS = 10_000;
const OPERATIONS_A_ROUND = 1000;

/** Runs it in `folder`. @param why there is no QEMU @throws what went wrong */
export async function demonstrateBuiltIn(folder: string, why: string): Promise<void> {
  const image = join(folder, 'disk.img');
  const servers: Devstate[] = [];
  const serve = async (name: string, args: string[]) => {
    const socketPath = join(folder, name);
    const migrationSocket = `${socketPath}.migration`;
    const server = await serveNvme({ socket: socketPath, migrationSocket, image, args });
    servers.push(server);
    return { server, socketPath, manager: new MigrationClient(await Client.connect(migrationSocket)) };
  };
  try {
    const a = await serve('a', ['--size', String(BLOCKS * BLOCK_BYTES)]);
    const b = await serve('b', ['--incoming']);
    const machine = await GuestMachine.start(a.socketPath, { memoryBytes: MEMORY });
    const driver = await NvmeDriver.start(machine, { queues: 4 });
    const { blocks, blockSize } = driver.namespace;
    tell('Guest', `built-in driver instead of a VM: ${why}`);
    tell(
      'Device',
      `${driver.controller.modelNumber} in process ${a.server.process.pid}: ${bytes(blocks * blockSize)}, ` +
        `${driver.queueCount} I/O queues, ${machine.vectors} MSI-X vectors, ${bytes(MEMORY)} of guest memory by DMA`,
    );

    const writer = new BlockWriter(driver, { blocks: BLOCKS, depth: DEPTH });
    const began = performance.now();
    await writer.progress(OPERATIONS);
    const seconds = (performance.now() - began) / 1000;
    tell('Before', `${tally(writer)} in ${seconds.toFixed(1)} s, ${DEPTH} at a time`);

    const report = await moveGuest(driver, a, b, { onRound: () => writer.progress(OPERATIONS_A_ROUND) });
    tell(
      'Pre-copy',
      `${report.rounds} rounds while the guest writes on: ${bytes(report.memoryBytes.running)} of memory, ` +
        `${bytes(report.stateBytes.running)} of device state`,
    );
    tell(
      'Pause',
      `${milliseconds(report.pauseMs)} (${parts(report.partsMs)}): ${report.outstanding} commands in flight, ` +
        `${bytes(report.stateBytes.paused)} of device state, ${bytes(report.memoryBytes.paused)} of memory, ` +
        `${report.devicePages.paused} pages of it written by the device`,
    );
    a.manager.close();
    await a.server.end();
    const moved = writer.operations;
    await writer.progress(OPERATIONS);
    await writer.stop();
    tell(
      'After',
      `process ${a.server.process.pid} is killed, ${b.server.process.pid} serves: ` +
        `${count(writer.operations - moved)} more operations; the longest of all took ${milliseconds(writer.longestMs)}`,
    );
    const { failed, timedOut, late } = driver.counters;
    if (failed + timedOut + late > 0) throw new Error(`${failed} commands failed, ${timedOut} timed out`);
    const read = await writer.readBack();
    const written = writer.checkImage(readFileSync(image));
    tell(
      'Verified',
      `${count(read)} blocks read back by the guest, ${count(written)} found in the image: numbers and checksums as written`,
    );
    await driver.shutdown();
    driver.machine.close();
    b.manager.close();
    await b.server.end('SIGTERM');
  } finally {
    await Promise.all(servers.map((server) => server.end()));
  }
}

function tally(writer: BlockWriter): string {
  return `${count(writer.written)} blocks written, ${count(writer.verified)} read back and checked`;
}
