// SPDX-License-Identifier: Apache-2.0
/**
 * What `baseline/client.c` does, with our client. Same arguments, same output:
 *
 *     state-client SOCKET region-read COUNT [REGION]
 *     state-client SOCKET mig-read BYTES CHUNK [FILE]      with FILE: keeps what was read
 *     state-client SOCKET mig-write BYTES CHUNK FILE
 *
 * With `trap-` or `map-` for `mig-`: by the region of v1, by messages or through its mapping.
 */

import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { Client, MigrationClient, RegionMigrationClient } from '../../src/client/index.js';
import { MigrationState } from '../../src/wire/index.js';

async function regionRead(client: Client, count: number, region: number): Promise<unknown> {
  const target = new Uint8Array(4);
  const times = new Float64Array(count);
  for (let i = 0; i < count / 10; i++) await client.regionRead(region, 0, target);
  for (let i = 0; i < count; i++) {
    const start = performance.now();
    await client.regionRead(region, 0, target);
    times[i] = performance.now() - start;
  }
  times.sort();
  const nanoseconds = (part: number) => Math.round(times[Math.floor(count * part)]! * 1e6);
  return { p50: nanoseconds(0.5), p99: nanoseconds(0.99) };
}

async function migRead(
  manager: MigrationClient,
  bytes: number,
  chunk: number,
  file?: string,
): Promise<unknown> {
  const fd = file === undefined ? undefined : openSync(file, 'w');
  const target = new Uint8Array(chunk);
  await manager.setState(MigrationState.STOP_COPY);
  const start = performance.now();
  let done = 0;
  // The last read tells that there is no more; the C client stops when it has as much as it wants.
  while (fd !== undefined || done < bytes) {
    const size = await manager.readData(target);
    if (size === 0) break;
    if (fd !== undefined) writeSync(fd, target, 0, size);
    done += size;
  }
  const result = rate(done, start);
  await manager.setState(MigrationState.RUNNING);
  if (fd !== undefined) closeSync(fd);
  return result;
}

async function migWrite(
  manager: MigrationClient,
  bytes: number,
  chunk: number,
  file: string,
): Promise<unknown> {
  const content = new Uint8Array(bytes);
  const fd = openSync(file, 'r');
  for (let at = 0; at < bytes; ) at += readSync(fd, content, at, Math.min(bytes - at, 2 ** 30), at);
  closeSync(fd);
  await manager.setState(MigrationState.RESUMING);
  const start = performance.now();
  for (let at = 0; at < bytes; at += chunk) await manager.writeData(content.subarray(at, at + chunk));
  return rate(bytes, start);
}

function rate(bytes: number, start: number): unknown {
  return { bytes, bytesPerSecond: Math.round((bytes * 1000) / (performance.now() - start)) };
}

const [socketPath = '', test = '', amount = '', fifth = '', file] = process.argv.slice(2);
const client = await Client.connect(socketPath);
const [protocol] = test.split('-');
const manager =
  protocol === 'trap' || protocol === 'map'
    ? ((await RegionMigrationClient.open(client, { map: protocol === 'map' })) as MigrationClient)
    : new MigrationClient(client);
const result =
  test === 'region-read'
    ? await regionRead(client, Number(amount), Number(fifth))
    : test.endsWith('-read')
      ? await migRead(manager, Number(amount), Number(fifth), file)
      : await migWrite(manager, Number(amount), Number(fifth), file ?? '');
client.close();
process.stdout.write(`${JSON.stringify(result)}\n`);
