// SPDX-License-Identifier: Apache-2.0
/** What a guest, a VMM or a manager sends holds up no one else: the event loop of the server never stands still. */

import { join } from 'node:path';
import { deflateRawSync } from 'node:zlib';
import t, { type Test } from 'tap';
import { Client, MigrationClient } from '../../src/client/index.js';
import { decodeEnvelope } from '../../src/formats/envelope/decoder.js';
import { Command, HeaderFlag, MigrationState } from '../../src/wire/index.js';
import { serveNvme } from '../e2e/harness/devstate-process.js';
import { encodeBlob, forgeRecord, piecesOf } from '../formats/blobs.js';
import { takeStops } from '../support/loop-watch.js';
import { RawClient } from '../support/raw-client.js';
import { socketFolder } from '../support/served.js';

t.setTimeout(900_000);

const MIB = 1024 * 1024;

async function serve(t: Test, vendor: string): Promise<{ socket: string; migrationSocket: string }> {
  const folder = socketFolder(t);
  const paths = { socket: join(folder, 'socket'), migrationSocket: join(folder, 'migration') };
  const args = ['--vendor', vendor, '--size', '64M'];
  const server = await serveNvme({ ...paths, image: join(folder, 'image'), args });
  t.teardown(() => server.end());
  return paths;
}

/** Calls the server over and over until `work` is done. @returns how often it answered */
async function meanwhile(migrationSocket: string, work: Promise<unknown>): Promise<number> {
  const other = new MigrationClient(await Client.connect(migrationSocket));
  let answers = 0;
  let done = false;
  void work.finally(() => (done = true)).catch(() => {});
  while (!done) {
    await other.state();
    answers++;
  }
  other.close();
  await work;
  return answers;
}

/** A blob of the device's own, as its header and what follows. */
async function ownBlob(manager: MigrationClient): Promise<Uint8Array> {
  await manager.setState(MigrationState.STOP_COPY);
  const parts: Uint8Array[] = [];
  for (;;) {
    const target = new Uint8Array(MIB);
    const length = await manager.readData(target);
    if (length === 0) break;
    parts.push(target.subarray(0, length));
  }
  await manager.setState(MigrationState.STOP);
  return Buffer.concat(parts);
}

const OPTIONAL = 1;
const DEFLATE = 4;

function deflated(length: number): Uint8Array {
  const data = deflateRawSync(new Uint8Array(length));
  const payload = new Uint8Array(4 + data.length);
  new DataView(payload.buffer).setUint32(0, length, true);
  payload.set(data, 4);
  return payload;
}

/** Records of a type that no device knows, as many as one message holds. */
function flood(flags: number, payload: Uint8Array): Uint8Array[] {
  const records: Uint8Array[] = [];
  let length = 0;
  for (;;) {
    const record = forgeRecord(records.length, { type: 0x1fff0, flags, payload });
    length += record.length;
    if (length > MIB - 64) return records;
    records.push(record);
  }
}

for (const vendor of ['alder', 'birch']) {
  t.test(`${vendor}: a megabyte of migration data that inflates, or is many records`, async (t) => {
    const { migrationSocket } = await serve(t, vendor);
    const manager = new MigrationClient(await Client.connect(migrationSocket));
    t.teardown(() => manager.close());
    const own = decodeEnvelope(await ownBlob(manager));
    const header = piecesOf(encodeBlob([], { ...own.header, features: ['deflate'] })).header;
    const floods: [string, Uint8Array[]][] = [
      ['records of 1 MiB', flood(OPTIONAL | DEFLATE, deflated(MIB))],
      ['records of 16 MiB', flood(OPTIONAL | DEFLATE, deflated(16 * MIB))],
      ['records of nothing', flood(OPTIONAL, new Uint8Array(0))],
    ];
    for (const [name, records] of floods) {
      await manager.setState(MigrationState.RESUMING);
      await manager.writeData(header);
      const answers = await meanwhile(migrationSocket, manager.writeData(Buffer.concat(records)));
      t.comment(`${name}: ${records.length} records, ${answers} answers`);
      t.same(takeStops(), [], name);
      await manager.reset();
    }
  });

  t.test(`${vendor}: 20,000 posted writes, also while an access of the guest's is under way`, async (t) => {
    const { socket, migrationSocket } = await serve(t, vendor);
    const vmm = await RawClient.connect(socket);
    t.teardown(() => vmm.close());
    await vmm.version();
    const write = new Uint8Array(20);
    const view = new DataView(write.buffer);
    view.setBigUint64(0, 0x14n, true);
    view.setUint32(12, 4, true);
    for (let i = 0; i < 20_000; i++) {
      // CC with an entry size that does not exist, and 0: the controller fails, and is reset.
      view.setUint32(16, i % 2 === 0 ? 0x460781 : 0, true);
      vmm.send(vmm.message(Command.REGION_WRITE, write.slice(), { flags: HeaderFlag.NO_REPLY }));
    }
    const read = new Uint8Array(16);
    new DataView(read.buffer).setUint32(12, 4, true);
    await meanwhile(migrationSocket, vmm.call(Command.REGION_READ, read));
    t.same(takeStops(), []);
  });
}
