// SPDX-License-Identifier: Apache-2.0
/**
 * A device is moved while the VMM at either end has mapped 65,535 ranges: state, log and dirty pages. No server's event loop
 * stands still, and the manager asks for all ranges together.
 */

import { readSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Client, MigrationClient } from '../../../src/client/index.js';
import { PageBitmap } from '../../../src/migration/index.js';
import { load, save } from '../../../src/operations/index.js';
import { collectDirty, LOG_PAGE_SIZE, startLog } from '../../../src/operations/migrate/dirty-pages.js';
import { PageCopier } from '../../../src/operations/migrate/page-copy.js';
import { transferState } from '../../../src/operations/state-stream.js';
import { MigrationState } from '../../../src/wire/index.js';
import { Devstate, serveNvme } from '../../e2e/harness/devstate-process.js';
import { takeStops } from '../../support/loop-watch.js';
import { address, MOST, mapAll, PAGE } from '../../support/many-maps.js';
import { memfd } from '../../support/memory.js';
import { socketFolder } from '../../support/served.js';

const { PRE_COPY, STOP_COPY, RESUMING, STOP, RUNNING } = MigrationState;
/** Of the ranges, every so manieth is written. */
const STEP = 16;
const WRITTEN = Math.ceil(MOST / STEP);
/** Most messages for one report of all ranges. */
const FEW_REPORTS = 16;

t.setTimeout(240_000);

/** A server in a process of its own, behind a relay in another one if so wanted, and a VMM that has mapped all that it may. */
async function end(t: Test, relayed = false) {
  const folder = socketFolder(t);
  const own = { socket: join(folder, 'socket'), migrationSocket: join(folder, 'migration') };
  const server = await serveNvme({ ...own, image: join(folder, 'image'), args: ['--size', '16M'] });
  t.teardown(() => server.end());
  let paths = own;
  if (relayed) {
    paths = { socket: join(folder, 'relay'), migrationSocket: join(folder, 'relay-migration') };
    const sockets = ['--listen', paths.socket, '--migration-socket', paths.migrationSocket];
    const relay = new Devstate(['relay', ...sockets, '--server', own.socket]);
    t.teardown(() => relay.end());
    await relay.saysOnStderr(/"msg":"relaying /);
  }
  const vmm = await Client.connect(paths.socket);
  const fd = memfd(MOST * PAGE);
  t.teardown(() => {
    vmm.close();
    fd.close();
  });
  await mapAll(vmm, MOST, () => fd.duplicate());
  const connect = async (path: string): Promise<MigrationClient> => {
    const client = new MigrationClient(await Client.connect(path));
    t.teardown(() => client.close());
    return client;
  };
  const manager = await connect(paths.migrationSocket);
  // What it writes goes through the device server's memory and into its log, as what the device writes.
  const writer = await connect(own.migrationSocket);
  const byte = (index: number): number => {
    const target = new Uint8Array(1);
    readSync(fd.number, target, 0, 1, index * PAGE + 5);
    return target[0]!;
  };
  return { manager, writer, byte, ...paths, folder };
}

/** Counts the reports of the log that are asked for. */
function countReports(manager: MigrationClient): () => number {
  const report = manager.reportLogging.bind(manager);
  let count = 0;
  manager.reportLogging = (range) => {
    count++;
    return report(range);
  };
  return () => count;
}

for (const way of ['mapped', 'messages'] as const) {
  t.test(`65,535 ranges live through a migration, pages ${way}`, async (t) => {
    // A relay gives no files away.
    const [from, to] = await Promise.all([end(t, way === 'messages'), end(t)]);
    t.same(takeStops(), [], 'while they are mapped');
    const [source, destination] = [from.manager, to.manager];
    const reports = countReports(source);
    const copier = new PageCopier(source, destination);
    t.teardown(() => copier.close());
    await copier.rehearse();

    await destination.setState(RESUMING);
    await startLog(source);
    await source.setState(PRE_COPY);
    const dirty = new PageBitmap();
    const write = async (value: number): Promise<void> => {
      const data = new Uint8Array(16).fill(value);
      for (let index = 0; index < MOST; index += STEP) await from.writer.writeMemory(address(index), data);
    };
    await write(1);
    await transferState(source, destination);
    await collectDirty(source, dirty);
    t.equal(dirty.count, WRITTEN);
    await write(2);
    await source.setState(STOP_COPY);
    const started = performance.now();
    await transferState(source, destination);
    await collectDirty(source, dirty);
    t.equal(dirty.count, WRITTEN, 'each page once');
    t.ok(reports() <= 2 * FEW_REPORTS, `${reports()} reports`);
    await destination.setState(STOP);
    const bytes = await copier.copy(dirty.ranges(LOG_PAGE_SIZE));
    t.comment(`${bytes} bytes ${copier.way}; pause of ${Math.round(performance.now() - started)} ms`);
    t.equal(copier.way, way);
    await destination.setState(RUNNING);
    const wrong = Array.from({ length: MOST }, (_, index) => index).filter(
      (index) => to.byte(index) !== (index % STEP === 0 ? 2 : 0),
    );
    t.same(wrong, [], 'every page that was written is there, and no other has changed');
    await source.stopLogging();
    await source.setState(STOP);

    // The state by itself, too.
    const output = join(from.folder, 'state');
    await save({ migrationSocket: to.migrationSocket, output, afterwards: 'stop', unproven: true });
    await load({ migrationSocket: to.migrationSocket, input: output, afterwards: 'run', unproven: true });
    t.equal(await destination.state(), RUNNING);
    t.equal((await destination.dmaMaps()).length, MOST);
    t.same(takeStops(), [], 'no event loop stood still');
  });
}
