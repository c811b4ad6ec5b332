// SPDX-License-Identifier: Apache-2.0
/**
 * Conformance with libvfio-user: its sample client moves our sample device to a second server of ours, and our client
 * saves from, and loads into, its sample server. `docs/conformance.md` says how to build it and where to name it.
 */

import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Client, MigrationClient, RegionMigrationClient } from '../../src/client/index.js';
import { MigrationState } from '../../src/wire/index.js';
import { Vmm } from '../devices/sample/bench.js';
import { devstate } from '../e2e/harness/devstate-process.js';
import { sameBytes } from '../support/hex.js';
import { socketFolder } from '../support/served.js';
import { runSampleClient, SampleServer } from './libvfio-user.js';

t.setTimeout(110_000);

const { STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY } = MigrationState;
const BAR1 = 0x3000;

/** Lines of our servers' logs in a text of many hands. */
function logged(text: string): string[] {
  return text
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => (JSON.parse(line) as { msg: string }).msg);
}

const { DEVSTATE_LIBVFIO_USER_V1: buildV1, DEVSTATE_LIBVFIO_USER_V2: buildV2 } = process.env;
const v1 = { skip: buildV1 === undefined && 'DEVSTATE_LIBVFIO_USER_V1 is not set, see docs/conformance.md' };
const v2 = { skip: buildV2 === undefined && 'DEVSTATE_LIBVFIO_USER_V2 is not set, see docs/conformance.md' };

/** What the client of either era says when all went well, in this order. */
const CLIENT_SAYS = [
  /devinfo: flags 0x3, num_regions (9|10), num_irqs 5/,
  /region_info\[0\] offset 0 flags 0x3 size 8 /,
  /region_info\[1\] offset 0 flags 0xf size 12288 /,
  /area 0 offset 0 size 4096/,
  /area 1 offset 0x2000 size 4096/,
  /region_info\[7\] offset 0 flags 0x3 size 256 /,
  /IRQ INTx: count=1 flags=0x1/,
  // Set to the next second, which may have come.
  /read from BAR0: (-1|\d)\n/,
  /INTx triggered!/,
  /get_dirty_bitmap: 0-0xfff\t0x1/,
  /get_dirty_bitmap: 0x1000-0x1fff\t0x1/,
  /get_dirty_bitmap: 0x2000-0x2fff\t0\n/,
  /setting device state to stop-and-copy/,
  /starting destination server/,
  /IRQ INTx: count=1 flags=0x1/,
  /INTx triggered!/,
];

async function sampleClient(t: Test, build: string, options: readonly string[]): Promise<void> {
  const { client, source } = await runSampleClient(t, build, options);
  let rest = client.stdout;
  for (const line of CLIENT_SAYS) {
    const found = line.exec(rest);
    t.ok(found, `the client says ${line}`, { stdout: client.stdout, stderr: client.stderr });
    rest = rest.slice((found?.index ?? 0) + (found?.[0].length ?? 0));
  }
  const complaints = client.stderr.split('\n').filter((line) => line !== '' && !line.startsWith('{'));
  t.match(complaints, [/failed to read from region -559038737 0-0x3: Invalid argument/]);
  t.equal(complaints.length, 1, 'it complains of nothing but of what it tried on purpose');
  t.equal(client.code, 0, 'the destination, which its process became, ended well');
  t.equal(await source.exited, 0);
  for (const [name, log] of [
    ['source', logged(source.stderr)],
    ['destination', logged(client.stderr)],
  ] as const) {
    for (const how of ['directly', 'by messages'])
      t.ok(
        log.some((line) => line.endsWith(`was written and read back ${how}`)),
        `${name}: memory ${how}`,
      );
    t.equal(log.at(-1), 'the VMM has left', name);
  }
}

t.test('v2: the sample client moves our device to another server of ours', v2, async (t) => {
  await sampleClient(t, buildV2 ?? '', []);
});

t.test('v1: the sample client moves our device to another server of ours', v1, async (t) => {
  // Each waits for a timer of ten seconds.
  await Promise.all(
    [
      ['--migration', 'v1'],
      ['--migration', 'v1', '--migration-mapped'],
      ['--migration', 'both'],
    ].map((options) => sampleClient(t, buildV1 ?? '', options)),
  );
});

/** A state as the sample has it: BAR 1, and the second for its timer. */
function sampleState(second: number): Buffer {
  const state = Buffer.alloc(BAR1 + 8);
  for (let i = 0; i < BAR1; i++) state[i] = (i * 13 + (i >> 8)) & 0xff;
  state.writeBigInt64LE(BigInt(second), BAR1);
  return state;
}

const soon = (): number => Math.floor(Date.now() / 1000) + 1000;

/** @param options of save and load */
async function saveAndLoad(t: Test, build: string, ...options: string[]): Promise<void> {
  const folder = socketFolder(t);
  const [saved, given] = [join(folder, 'saved'), join(folder, 'given')];
  const source = await SampleServer.start(t, build);
  // Its timer was never set, and it refuses to run again with one in the past.
  const from = ['--migration-socket', source.socket, '-o', saved, '--then', 'stop'];
  t.match(await devstate('save', ...from, ...options), { code: 0, stderr: /saved 12.0 KiB/ });
  t.equal(statSync(saved).size, BAR1 + 8);
  t.ok(readFileSync(saved).every((byte) => byte === 0));
  t.equal((await source.ended).code, 0);

  writeFileSync(given, sampleState(soon()));
  const target = await SampleServer.start(t, build);
  const load = await devstate('load', '--migration-socket', target.socket, given, ...options);
  t.match(load, { code: 0, stderr: /loaded 12.0 KiB/ });
  const { code, stderr } = await target.ended;
  t.equal(code, 0);
  t.match(stderr, /arming timer to trigger in (1000|99\d) seconds/, 'the second was loaded');
}

t.test('v2: devstate save and load at the sample server', v2, (t) => saveAndLoad(t, buildV2 ?? ''));

// Mapped, its data section is not looked at by it.
t.test('v1: devstate save and load at the sample server', v1, (t) =>
  saveAndLoad(t, buildV1 ?? '', '--protocol', 'v1', '--trap'),
);

/** The only client that a sample server has. */
async function connect(t: Test, socket: string): Promise<MigrationClient> {
  const client = new MigrationClient(await Client.connect(socket));
  t.teardown(() => client.close());
  return client;
}

async function bar1Of({ client }: MigrationClient): Promise<Uint8Array> {
  const bytes = new Uint8Array(BAR1);
  await client.regionRead(1, 0, bytes);
  return bytes;
}

/** Reads until nothing comes, and passes it on. Returns what it was. */
async function pump(source: MigrationClient, target: MigrationClient, chunk: number): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for (;;) {
    const buffer = Buffer.alloc(chunk);
    const size = await source.readData(buffer);
    if (size === 0) return Buffer.concat(pieces);
    const piece = buffer.subarray(0, size);
    await target.writeData(piece);
    pieces.push(piece);
  }
}

t.test(
  'v2: from the sample server to our device, while it runs, and to another sample server',
  v2,
  async (t) => {
    const theirs = await connect(t, (await SampleServer.start(t, buildV2 ?? '')).socket);
    const ours = await Vmm.start(t);
    const next = await connect(t, (await SampleServer.start(t, buildV2 ?? '')).socket);
    const state = sampleState(soon());
    await theirs.setState(RESUMING);
    await theirs.writeData(state);
    await theirs.setState(RUNNING);
    t.ok(sameBytes(await bar1Of(theirs), state.subarray(0, BAR1)), 'their server takes our state');

    await ours.migration.setState(RESUMING);
    await theirs.setState(PRE_COPY);
    t.equal((await pump(theirs, ours.migration, 1000)).length, BAR1);
    state.fill(0x99, 5000, 6000);
    await theirs.client.regionWrite(1, 5000, state.subarray(5000, 6000));
    await theirs.setState(STOP_COPY);
    t.ok(sameBytes(await pump(theirs, ours.migration, 1000), state));
    await theirs.setState(STOP);
    await ours.migration.setState(RUNNING);
    t.ok(sameBytes(await ours.bar1(), state.subarray(0, BAR1)), 'our device takes theirs');
    t.match(await ours.sinceAlarm(), /^-(1000|99\d)$/);

    // Without pre-copy: their server takes no more than the last round, whatever its like has sent before.
    await next.setState(RESUMING);
    await ours.migration.setState(STOP_COPY);
    t.ok(sameBytes(await pump(ours.migration, next, 1 << 20), state));
    await next.setState(RUNNING);
    t.ok(sameBytes(await bar1Of(next), state.subarray(0, BAR1)));
  },
);

/** By trapped accesses: the sample server lets its data section be mapped, and then does not notice what is done there. */
async function connectV1(t: Test, socket: string): Promise<RegionMigrationClient> {
  const device = await RegionMigrationClient.open(await Client.connect(socket), { map: false });
  if (device === undefined) throw new Error('the sample server has no migration region');
  t.teardown(() => device.close());
  return device;
}

t.test(
  'v1: from the sample server to our device, while it runs, and to another sample server',
  v1,
  async (t) => {
    const theirs = await connectV1(t, (await SampleServer.start(t, buildV1 ?? '')).socket);
    const next = await connectV1(t, (await SampleServer.start(t, buildV1 ?? '')).socket);
    const state = sampleState(soon());
    await theirs.setState(RESUMING);
    await theirs.writeData(state, { whole: true });
    await theirs.setState(RUNNING);
    t.ok(sameBytes(await bar1Of(theirs), state.subarray(0, BAR1)), 'their server takes our state');

    const vmm = await Vmm.start(t, 4, { migration: 'v1' });
    const ours = await RegionMigrationClient.open(vmm.client);
    if (ours === undefined) throw new Error('our server has no migration region');
    await ours.setState(RESUMING);
    await theirs.setState(PRE_COPY);
    t.equal((await pump(theirs, ours, BAR1)).length, BAR1);
    state.fill(0x99, 5000, 6000);
    await theirs.client.regionWrite(1, 5000, state.subarray(5000, 6000));
    await theirs.setState(STOP_COPY);
    t.ok(sameBytes(await pump(theirs, ours, BAR1 + 8), state));
    await theirs.setState(STOP);
    await ours.setState(RUNNING);
    t.ok(sameBytes(await vmm.bar1(), state.subarray(0, BAR1)), 'our device takes theirs');
    t.match(await vmm.sinceAlarm(), /^-(1000|99\d)$/);

    await next.setState(RESUMING);
    await ours.setState(PRE_COPY);
    t.equal((await pump(ours, next, BAR1)).length, BAR1);
    await ours.setState(STOP_COPY);
    t.ok(sameBytes(await pump(ours, next, BAR1 + 8), state));
    await next.setState(RUNNING);
    t.ok(sameBytes(await bar1Of(next), state.subarray(0, BAR1)), 'with its pre-copy');
  },
);
