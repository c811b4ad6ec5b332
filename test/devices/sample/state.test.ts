// SPDX-License-Identifier: Apache-2.0
/** The state of the sample device: as libvfio-user's sample has it on the wire, and in its format. */

import fc from 'fast-check';
import t, { type Test } from 'tap';
import type { MigrationClient } from '../../../src/client/index.js';
import { SampleDevice, SampleRecord, sampleDescription } from '../../../src/devices/sample/index.js';
import { decodeEnvelope, inspect, SAMPLE } from '../../../src/formats/index.js';
import { Command, Errno, Feature, FeatureFlag, MigrationState } from '../../../src/wire/index.js';
import { sameBytes } from '../../support/hex.js';
import { u32 } from '../../support/payloads.js';
import { outcome } from '../../support/served.js';
import { now, PAGE, Vmm } from './bench.js';

const { ERROR, STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY } = MigrationState;
const { MIG_DEVICE_STATE } = Feature;
const { SET } = FeatureFlag;
const BAR1 = 3 * PAGE;

const pattern = (factor: number): Uint8Array =>
  Uint8Array.from({ length: BAR1 }, (_, i) => (i * factor + (i >> 8)) & 0xff);

/** Reads until nothing comes. Returns the pieces as they came. */
async function readAll(device: MigrationClient, chunk: number): Promise<Buffer[]> {
  const pieces: Buffer[] = [];
  for (;;) {
    const buffer = Buffer.alloc(chunk);
    const size = await device.readData(buffer);
    if (size === 0) return pieces;
    pieces.push(buffer.subarray(0, size));
  }
}

async function writeAll(device: MigrationClient, bytes: Uint8Array, chunk: number): Promise<void> {
  for (let at = 0; at < bytes.length; at += chunk) await device.writeData(bytes.subarray(at, at + chunk));
}

/** The stream of libvfio-user's sample. */
function rawStream(bar1: Uint8Array, second: number): Buffer {
  const bar0 = Buffer.alloc(8);
  bar0.writeBigInt64LE(BigInt(second));
  return Buffer.concat([bar1, bar0]);
}

t.test('without a format: the bytes that libvfio-user has', async (t) => {
  const source = await Vmm.start(t);
  const { migration, client } = source;
  const second = now() + 1000;
  await source.setAlarm(second);
  await client.regionWrite(1, 0, pattern(3));
  t.equal(await migration.dataSize(), BAR1 + 8);

  await migration.setState(PRE_COPY);
  const ahead = await readAll(migration, 1024);
  t.equal(ahead.length, 12);
  t.ok(sameBytes(Buffer.concat(ahead), pattern(3)));
  await client.regionWrite(1, 0, pattern(5));
  t.same(await readAll(migration, 1024), [], 'once');
  await migration.setState(STOP_COPY);
  t.equal(await migration.dataSize(), BAR1 + 8);
  const last = await readAll(migration, 1024);
  t.equal(last.length, 13);
  t.equal(last[12]?.length, 8);
  t.ok(sameBytes(Buffer.concat(last), rawStream(pattern(5), second)));
  t.equal(await migration.dataSize(), 0);

  // The v1 client passes everything on, the v2 client only what is not of the pre-copy.
  const final = Buffer.concat(last);
  const streams: [Uint8Array, number][] = [
    [final, 1024],
    [final, 1],
    [Buffer.concat([...ahead, final]), 1000],
    [Buffer.concat([...ahead, final]), 1 << 20],
    [Buffer.concat([...ahead, ...ahead, ...ahead, final]), 4096],
  ];
  for (const [stream, chunk] of streams) {
    const target = await Vmm.start(t);
    await target.migration.setState(RESUMING);
    await writeAll(target.migration, stream, chunk);
    await target.migration.setState(STOP);
    t.ok(sameBytes(await target.bar1(), pattern(5)), `${stream.length} bytes in chunks of ${chunk}`);
    await target.migration.setState(RUNNING);
    t.match(await target.sinceAlarm(), /^-(1000|99\d)$/);
  }
});

t.test('without a format: a pre-copy that was left', async (t) => {
  for (const [read, ahead] of [
    [0, 0],
    [1000, BAR1 - 1000],
  ] as const) {
    const source = await Vmm.start(t);
    const { migration, client } = source;
    await migration.setState(PRE_COPY);
    const begun = Buffer.alloc(read);
    if (read > 0) t.equal(await migration.readData(begun), read);
    await client.regionWrite(1, 0, pattern(7));
    await migration.setState(STOP_COPY);
    const rest = Buffer.concat(await readAll(migration, 1 << 20));
    t.equal(rest.length, ahead + BAR1 + 8, 'what was begun is ended, what was not is left out');
    const target = await Vmm.start(t);
    await target.migration.setState(RESUMING);
    await writeAll(target.migration, Buffer.concat([begun, rest]), 4096);
    await target.migration.setState(RUNNING);
    t.ok(sameBytes(await target.bar1(), pattern(7)));

    // Given up, it begins anew.
    await migration.setState(STOP);
    await migration.setState(RUNNING);
    await migration.setState(PRE_COPY);
    t.ok(sameBytes(Buffer.concat(await readAll(migration, 4096)), pattern(7)));
  }
});

t.test('without a format: refused', async (t) => {
  const vmm = await Vmm.start(t);
  const { migration } = vmm;
  for (const length of [0, 1, BAR1, BAR1 + 7, BAR1 + 9, 2 * BAR1, 2 * BAR1 + 7]) {
    await vmm.client.regionWrite(1, 0, pattern(9));
    await migration.setState(RESUMING);
    await writeAll(migration, Buffer.alloc(length), 5000);
    t.equal(await outcome(migration.setState(STOP)), Errno.EINVAL, `${length} bytes`);
    t.equal(await migration.state(), ERROR);
    t.ok(sameBytes(await vmm.bar1(), pattern(9)), 'unchanged');
    await vmm.client.reset();
    t.equal(await migration.state(), RUNNING);
  }
  await migration.setState(RESUMING);
  for (let i = 0; i < 255; i++) await migration.writeData(Buffer.alloc(BAR1));
  await migration.writeData(Buffer.alloc(BAR1 + 8));
  t.equal(
    await outcome(migration.writeData(Buffer.alloc(1))),
    Errno.EINVAL,
    'too much is refused as it comes',
  );
});

t.test(
  "answers at the VMM's socket are as long as was asked, for clients made with libvfio-user",
  async (t) => {
    const { served, client } = await Vmm.start(t);
    client.close();
    for (const [path, padded] of [
      [served.path, true],
      [served.migrationPath, false],
    ] as const) {
      const raw = await served.raw(path);
      await raw.version();
      const feature = MIG_DEVICE_STATE | SET;
      await raw.call(Command.DEVICE_FEATURE, u32(16, feature, STOP_COPY, 0));
      for (const size of [BAR1 + 8, 0]) {
        const { payload } = await raw.call(Command.MIG_DATA_READ, u32(8 + 20_000, 20_000));
        t.same([...new Uint32Array(payload.slice(0, 8).buffer)], [8 + size, size]);
        t.equal(payload.length, padded ? 8 + 20_000 : 8 + size, path);
      }
      await raw.call(Command.DEVICE_FEATURE, u32(16, feature, RUNNING, 0));
      raw.close();
    }
  },
);

/** A manager of the device that has selected the format. */
async function manager(vmm: Vmm): Promise<MigrationClient> {
  const device = await vmm.served.manager();
  const [offer] = (await device.formats()) ?? [];
  if (offer === undefined) throw new Error('no format is offered');
  await device.selectFormat(offer, 'save');
  await device.selectFormat(offer, 'load');
  return device;
}

t.test('in its format: there and back', async (t) => {
  const sides = [await Vmm.start(t), await Vmm.start(t)] as const;
  const managers = [await manager(sides[0]), await manager(sides[1])] as const;
  const content = pattern(11);
  await sides[0].client.regionWrite(1, 0, content);
  await sides[0].client.regionWrite(7, 0x3c, Uint8Array.of(10));
  await sides[0].setAlarm(now() + 1000);
  for (let round = 0; round < 6; round++) {
    const [from, to] = [round % 2, 1 - (round % 2)] as const;
    const [source, target] = [managers[from]!, managers[to]!];
    await target.setState(RESUMING);
    const stream: Buffer[] = [];
    const move = async (): Promise<void> => {
      for (const piece of await readAll(source, 5000)) {
        stream.push(piece);
        await target.writeData(piece);
      }
    };
    await source.setState(PRE_COPY);
    await move();
    const at = PAGE * (round % 3) + round;
    content.fill(round, at, at + 10);
    await sides[from]!.client.regionWrite(1, at, content.subarray(at, at + 10));
    await source.setState(STOP_COPY);
    await move();
    await target.setState(RUNNING);
    const { header, records } = decodeEnvelope(Buffer.concat(stream));
    t.equal(header.format, SAMPLE.uuid);
    const { PAGE: page, TIMER: timer, CONFIG: config } = SampleRecord;
    t.same(
      records.map(({ type }) => type),
      [page, page, page, page, timer, config],
      'the page that has changed comes again',
    );
    t.ok(sameBytes(await sides[to]!.bar1(), content), `round ${round}`);
    t.match(await sides[to]!.sinceAlarm(), /^-(1000|99\d)$/);
    const line = new Uint8Array(1);
    await sides[to]!.client.regionRead(7, 0x3c, line);
    t.equal(line[0], 10, 'the config space comes along');
  }
});

t.test('in its format: inspected', async (t) => {
  const vmm = await Vmm.start(t);
  await vmm.setAlarm(2 ** 33);
  const device = await manager(vmm);
  await device.setState(STOP_COPY);
  const blob = Buffer.concat(await readAll(device, 1 << 20));
  const found = await inspect([blob], { formats: [sampleDescription] });
  t.match(found, { kind: 'envelope', format: { name: SAMPLE.name }, error: null });
  const { fields } = found as { fields: { name: string; values: Record<string, unknown> }[] };
  t.same(
    fields.map(({ name }) => name),
    ['page', 'page', 'page', 'timer', 'config'],
  );
  t.match(fields[2]?.values, { index: 2, sha256: /^[0-9a-f]{64}$/ });
  t.same(fields[3]?.values, { second: String(2 ** 33), armed: true, interrupt: false });
});

t.test('in its format: records that are refused', async (t) => {
  const device = new SampleDevice();
  t.teardown(() => device.close());
  const format = device.formats[0]!;
  format.begin();
  const records = [...format.save('final')];
  const { PAGE: page, TIMER: timer, CONFIG: config } = SampleRecord;
  const attempt = (given: typeof records): void => {
    const loader = format.load();
    for (const record of given) loader.record(record);
    loader.commit();
  };
  t.doesNotThrow(() => attempt(records));
  t.doesNotThrow(() => attempt([...records, { type: 0x10009, optional: true, payload: Buffer.alloc(3) }]));
  const with_ = (type: number, payload: Uint8Array) =>
    records.map((record) => (record.type === type ? { type, payload } : record));
  const wrong: [string, typeof records, RegExp][] = [
    ['a page less', records.slice(1), /1 pages of BAR 1 are missing/],
    ['no timer', records.filter(({ type }) => type !== timer), /timer is missing/],
    ['no config space', records.filter(({ type }) => type !== config), /config space is missing/],
    ['another type', [...records, { type: 0x10009, payload: Buffer.alloc(3) }], /0x10009 is unknown/],
    ['a short page', with_(page, Buffer.alloc(4103)), /a page of 4103 bytes/],
    ['a fourth page', with_(page, Buffer.alloc(4104, 3)), /no page 50529027/],
    ['a long timer', with_(timer, Buffer.alloc(17)), /a timer of 17 bytes/],
    ['timer flags', with_(timer, Buffer.alloc(16, 4)), /timer flags 0x4040404/],
    ['a short config space', with_(config, Buffer.alloc(255)), /config space of 255 bytes/],
    ["another's config space", with_(config, Buffer.alloc(256)), /config space differs at 0x0/],
  ];
  for (const [what, given, message] of wrong) t.throws(() => attempt(given), { message }, what);

  // Whatever comes, it is taken or refused with EINVAL, and what is taken is saved again as it came.
  fc.assert(
    fc.property(
      fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
      fc.integer({ min: 0, max: 7 }),
      fc.uint8Array({ minLength: BAR1, maxLength: BAR1, size: 'max' }),
      (second, flags, bar1) => {
        const payload = Buffer.alloc(16);
        payload.writeBigInt64LE(second);
        payload.writeUInt32LE(flags, 8);
        const pages = [0, 1, 2].map((index) => {
          const bytes = Buffer.alloc(8 + PAGE);
          bytes.writeUInt32LE(index);
          bytes.set(bar1.subarray(index * PAGE, (index + 1) * PAGE), 8);
          return { type: page, payload: bytes };
        });
        const given = [...pages, { type: timer, payload }, records.at(-1)!];
        try {
          attempt(given);
        } catch (error) {
          return flags > 3 && (error as { errno?: number }).errno === Errno.EINVAL;
        }
        format.begin();
        const saved = [...format.save('final')];
        // No one listens here, so no interrupt is pending.
        payload.writeUInt32LE(flags & 1, 8);
        return flags <= 3 && given.every((record, i) => sameBytes(record.payload, saved[i]!.payload));
      },
    ),
    { numRuns: 50 },
  );
});

/** Moves the whole state from one manager or VMM to another; the destination runs. */
async function move(source: MigrationClient, target: MigrationClient): Promise<void> {
  await target.setState(RESUMING);
  await source.setState(STOP_COPY);
  for (const piece of await readAll(source, 4096)) await target.writeData(piece);
  await target.setState(RUNNING);
}

async function alarmTravels(t: Test): Promise<void> {
  for (const kind of ['raw', 'format']) {
    const [source, target] = [await Vmm.start(t), await Vmm.start(t)];
    await source.setAlarm(now() + 1);
    const exercised = target.exercised();
    if (kind === 'raw') await move(source.migration, target.migration);
    else await move(await manager(source), await manager(target));
    await exercised;
    t.equal(target.interrupts(), 1, kind);
    t.same([source.log, source.interrupts()], [[], 0], kind);
  }
}

/** It was raised at the source, and no one was there to be told. */
async function interruptTravels(t: Test): Promise<void> {
  const [source, target] = [await Vmm.start(t), await Vmm.start(t)];
  await source.disableInterrupt();
  await source.alarm(now() + 1);
  await move(await manager(source), await manager(target));
  t.equal(target.interrupts(), 1, 'once');
  t.same(target.log, [], 'what came with it is not done again');
}

// They wait for the clock, so they wait together.
t.test('what is due goes along', (t) => Promise.all([alarmTravels(t), interruptTravels(t)]));
