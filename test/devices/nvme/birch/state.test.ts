// SPDX-License-Identifier: Apache-2.0
/** The native format: commands in flight and everything else there and back, and images that are not sound. */

import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import type { StateRecord } from '../../../../src/device/index.js';
import { BirchRecord, birchDescription } from '../../../../src/devices/nvme/birch/index.js';
import {
  COMMAND_SIZE,
  CommandSlot,
  CommandState,
  Header,
  QUEUE_SIZE,
} from '../../../../src/devices/nvme/birch/layout.js';
import { NVME_BIRCH } from '../../../../src/formats/index.js';
import { createRig, DATA, Guest, imageFolder, type MemoryKind, type Rig } from '../rig.js';

const FLUSH = 0;
const READ = 2;
/** More than are carried out at a time. */
const FLUSHES = 60;
const parameters = { queue_entries: 128 };

/** A controller with everything in its state that there can be, quiesced. */
async function fullRig(t: Test, path: string, kind: MemoryKind): Promise<{ rig: Rig; cids: Set<number> }> {
  const rig = createRig({ vendor: 'birch', kind, path, parameters });
  rig.useMsix(5);
  await rig.enable();
  // More commands than are started at a time, in a queue that has gone round.
  await rig.createPair(1, 100);
  for (let i = 0; i < 70; i++) await rig.run(1, { opcode: READ, nsid: 1, prp1: DATA });
  // An event that waits for a request, types that are masked, a request that waits for an event.
  rig.queue(0, { opcode: 0x0c, cid: 0x111 });
  rig.submit(0);
  rig.write(0x1000 + 8 * 4, 1);
  await rig.completion(0);
  rig.write(0x1000 + 8 * 4, 1);
  await rig.admin({ opcode: 9, cdw10: 9, cdw11: 0x10002 });
  await rig.admin({ opcode: 9, cdw10: 4, cdw11: 400 });
  t.match(await rig.admin({ opcode: 0x7f }), { status: 1 }, 'something for the error log');
  rig.queue(0, { opcode: 0x0c, cid: 0x112 });
  rig.submit(0);
  // The disk is held still until all of them have been fetched.
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  const flush = rig.image.flush.bind(rig.image);
  rig.image.flush = () => opened.then(flush);
  const size = () => rig.device.formats[0]!.estimate();
  const before = size();
  const cids = new Set<number>();
  for (let i = 0; i < FLUSHES; i++) cids.add(rig.queue(1, { opcode: FLUSH, nsid: 1 }));
  rig.submit(1);
  await rig.until('all commands', () => size() >= before + FLUSHES * COMMAND_SIZE);
  const quiesced = rig.device.quiesce();
  open();
  await quiesced;
  return { rig, cids };
}

function states(records: readonly StateRecord[]): number[] {
  const { payload } = records.find(({ type }) => type === BirchRecord.COMMANDS)!;
  return Array.from(
    { length: payload.length / COMMAND_SIZE },
    (_, i) => payload[i * COMMAND_SIZE + CommandSlot.STATE]!,
  );
}

for (const kind of ['mapped', 'remote'] satisfies MemoryKind[]) {
  t.test(`commands in flight go with the state, ${kind} memory`, async (t) => {
    const path = join(imageFolder(t), 'disk');
    const { rig, cids } = await fullRig(t, path, kind);
    const records = await rig.save();
    const fetched = states(records).filter((state) => state === CommandState.FETCHED).length;
    t.ok(fetched > 0, `${fetched} commands were fetched and not started`);
    t.equal(states(records).filter((state) => state === CommandState.WAITING).length, 1);
    for (let found = rig.poll(1); found !== undefined; found = rig.poll(1)) t.ok(cids.delete(found.cid));
    t.equal(cids.size, fetched, 'those that were started have ended');
    await rig.device.releaseExclusive?.();
    const consumed = await rig.save();

    const other = createRig({ vendor: 'birch', kind, path, parameters, lock: false, guest: rig.guest });
    t.teardown(() => other.image.close());
    await other.load(consumed);
    t.same(await other.save(), consumed, 'loaded and saved, equal bytes');
    await other.device.acquireExclusive?.();
    other.useMsix(5);
    await other.device.resume();
    while (cids.size > 0) {
      const { cid, status } = await other.completion(1);
      t.equal(status, 0);
      t.ok(cids.delete(cid), 'completed once');
    }
    t.equal(other.poll(1), undefined);
    other.write(0x1000 + 8 * 3, 1);
    t.match(await other.run(1, { opcode: READ, nsid: 1, prp1: DATA }), { status: 0 });
    await rig.image.close();
  });
}

t.test('format', async (t) => {
  const path = join(imageFolder(t), 'disk');
  const { rig } = await fullRig(t, path, 'mapped');
  t.teardown(() => rig.image.close());
  const format = rig.device.formats[0]!;
  t.match(format, {
    uuid: NVME_BIRCH.uuid,
    name: 'org.devstate.nvme.birch',
    version: { major: 1, minor: 0 },
  });
  t.same([...(format.save('pre-copy') as Iterable<StateRecord>)], []);
  const records = await rig.save();
  t.same(
    records.map(({ type }) => type),
    Object.values(BirchRecord),
  );
  t.ok(records.reduce((sum, { payload }) => sum + payload.length, 0) < format.estimate());
  t.throws(() => format.load({ major: 2, minor: 0 }), { message: /2\.0 cannot be read/ });
  await rig.device.releaseExclusive?.();
  const victim = () =>
    createRig({ vendor: 'birch', path, parameters, lock: false, guest: new Guest(), kind: 'mapped' });
  const target = victim();
  t.teardown(() => target.image.close());
  await target.device.quiesce();
  const pristine = await target.save();

  t.test('refused by name', async (t) => {
    const edit = (type: number, change: (view: DataView, payload: Uint8Array) => void) =>
      records.map((record) => {
        if (record.type !== type) return record;
        const payload = record.payload.slice();
        change(new DataView(payload.buffer), payload);
        return { type, payload };
      });
    const { HEADER, CONTROLLER, SUBMISSION_QUEUES, COMPLETION_QUEUES, COMMANDS } = BirchRecord;
    const u32 = (at: number, value: number) => (view: DataView) => view.setUint32(at, value, true);
    const cases: [string, readonly StateRecord[], RegExp][] = [
      ['missing', records.slice(1), /header record is missing/],
      ['twice', [...records, records[5]!], /commands record came twice/],
      ['unknown', [...records, { type: 0x1ffff, payload: new Uint8Array(0) }], /type 0x1ffff is unknown/],
      ['magic', edit(HEADER, u32(0, 0)), /does not begin with BIRCHNVM/],
      ['layout', edit(HEADER, u32(Header.LAYOUT_VERSION, 7)), /has layout 7, this controller layout 1/],
      [
        'sizes',
        edit(HEADER, (view) => {
          view.setUint32(Header.COMMAND_SIZE, 128, true);
          view.setUint32(Header.QUEUE_SIZE, 24, true);
        }),
        /queue structure has 24 bytes there, 32 here; the command structure has 128 bytes there, 96 here/,
      ],
      ['count', edit(HEADER, u32(Header.COMMAND_COUNT, 5000)), /5000 commands, more than the 4096/],
      ['length', edit(HEADER, u32(Header.SUBMISSION_COUNT, 3)), /submission_queues record has 64 bytes/],
      [
        'identity',
        edit(HEADER, (view, payload) => {
          view.setUint32(Header.MDTS, 5, true);
          payload[Header.SERIAL] = 0x58;
          payload[Header.NGUID]! ^= 1;
        }),
        /mdts is 5 there, 7 here; serial is "XEVSTATE0001" there, .* here; the NGUID/,
      ],
      ['padding', edit(HEADER, u32(0xf0, 1)), /header has bytes where nothing is/],
      ['CAP', edit(CONTROLLER, u32(0, 5)), /register CAP is another/],
      ['CC', edit(CONTROLLER, u32(0x14, 0x2)), /register CC has bits/],
      ['CSTS', edit(CONTROLLER, u32(0x1c, 5)), /shutdown is under way/],
      ['not ready', edit(CONTROLLER, u32(0x1c, 0)), /not ready has queues/],
      ['config', edit(CONTROLLER, u32(0x200, 0)), /config space differs at 0x0/],
      ['twice a queue', edit(SUBMISSION_QUEUES, (view) => view.setUint16(QUEUE_SIZE + 2, 0, true)), /order/],
      ['vector', edit(COMPLETION_QUEUES, (view) => view.setUint16(QUEUE_SIZE + 24, 5, true)), /vector that/],
      ['head', edit(COMPLETION_QUEUES, u32(QUEUE_SIZE + 16, 100)), /completion queue 1 has an index beyond/],
      ['size', edit(SUBMISSION_QUEUES, u32(QUEUE_SIZE + 4, 129)), /129 entries, not 2 to 128/],
      ['orphan', edit(SUBMISSION_QUEUES, u32(QUEUE_SIZE + 24, 4)), /submission queue 1 has no completion/],
      ['state', edit(COMMANDS, (_, payload) => payload.fill(2, 0, 1)), /command 0 is in a state that is not/],
      ['stray', edit(COMMANDS, (view) => view.setUint16(2, 3, true)), /command 0 is of submission queue 3/],
      ['unused', edit(COMMANDS, (_, payload) => payload.fill(0, 0, 1)), /commands: slot 0 is not in use/],
      ['order', edit(COMMANDS, (view) => view.setFloat64(16, Number.NaN)), /command 0 is out of order/],
    ];
    for (const [what, changed, message] of cases) {
      await t.rejects(target.load(changed), { name: 'RequestError', message }, what);
    }
    t.same(await target.save(), pristine, 'unchanged by all of it');
  });

  t.test('every byte flipped: refused, or a state that works and is saved as it was loaded', async (t) => {
    let loaded = 0;
    let flips = 0;
    for (const [index, record] of records.entries()) {
      for (let at = 0; at < record.payload.length; at++) {
        const payload = record.payload.slice();
        payload[at]! ^= 1 << (at % 8);
        flips++;
        const changed = records.with(index, { type: record.type, payload });
        try {
          await target.load(changed);
        } catch (error) {
          if ((error as Error).name !== 'RequestError') throw error;
          continue;
        }
        loaded++;
        const saved = await target.save();
        const [a, b] = [saved[index]!.payload, payload];
        if (Buffer.compare(a, b) !== 0) {
          const status = record.type === BirchRecord.CONTROLLER ? CONFIG_STATUS : [];
          t.ok(
            a.length === b.length && differences(a, b).every((place) => status.includes(place)),
            `only the status of the config space is not taken over: ${record.type} ${differences(a, b)}`,
          );
        }
        if (loaded % 16 === 0) {
          target.image.lock();
          await target.device.resume();
          await target.device.quiesce();
          await target.device.reset('aborted');
          await target.device.quiesce();
        }
      }
    }
    t.ok(loaded > 0 && loaded < flips, `${loaded} of ${flips} were loaded`);
    await target.device.reset('aborted');
    await target.device.quiesce();
    t.same(await target.save(), pristine, 'as good as new after a reset');
  });

  t.test('property: any bytes, of any length: refused, never a crash', async (t) => {
    const spoiled = fc.record({
      record: fc.nat(records.length - 1),
      at: fc.nat(2000),
      bytes: fc.uint8Array({ minLength: 1, maxLength: 400 }),
      length: fc.option(fc.nat(4000)),
    });
    await fc.assert(
      fc.asyncProperty(fc.array(spoiled, { minLength: 1, maxLength: 3 }), async (changes) => {
        const changed = records.map(({ type, payload }) => ({ type, payload: payload.slice() }));
        for (const { record, at, bytes, length } of changes) {
          const { type, payload } = changed[record]!;
          const place = at % Math.max(1, payload.length);
          payload.set(bytes.subarray(0, payload.length - place), place);
          if (length !== null) changed[record] = { type, payload: payload.slice(0, length) };
          birchDescription.describe?.(type, changed[record]!.payload, { major: 1, minor: 0 });
        }
        try {
          await target.load(changed);
          target.image.lock();
          await target.device.resume();
          await target.device.quiesce();
          await target.save();
        } catch (error) {
          if ((error as Error).name !== 'RequestError') throw error;
        }
        await target.device.reset('aborted');
      }),
      { numRuns: 300 },
    );
    t.notOk(target.image.locked);
  });

  t.test('described by names', async (t) => {
    const fields = Object.fromEntries(
      records.map(({ type, payload }) => [
        birchDescription.recordName(type),
        birchDescription.describe?.(type, payload, { major: 1, minor: 0 }),
      ]),
    );
    t.match(fields, {
      header: { magic: 'BIRCHNVM', layout_version: 1, parameters: { queue_entries: 128 } },
      controller: {
        registers: { cc: '0x460001', csts: '0x1' },
        features: { over_temperature_threshold: 400, coalescing_disabled: [2] },
        events: { pending: [{ type: 0, information: 0, log_page: 1 }], masked_types: '0x1' },
        health: { read_commands: 70 },
        error_log: [{ command_id: Number, status: '0x4001' }, {}, {}],
      },
      interrupt_vectors: { vectors: [{ masked: true }, {}, {}, {}, {}] },
      submission_queues: { queues: [{ id: 0 }, { id: 1, entries: 100, completion_queue: 1 }] },
      completion_queues: { queues: [{ id: 0 }, { id: 1, phase: 0, vector: 1, interrupts: true }] },
    });
    const { commands } = fields.commands as { commands: Record<string, unknown>[] };
    t.match(commands[0], { state: 'waiting', opcode: 'async_event_request', command_id: 0x112 });
    t.match(commands.at(-1), { state: 'fetched', submission_queue: 1, opcode: 'flush', namespace: 1 });
    t.equal(birchDescription.recordName(0x1ffff), undefined);
    t.equal(birchDescription.describe?.(0x1ffff, new Uint8Array(4), { major: 1, minor: 0 }), undefined);
  });
});

/** Where the status register of the config space is in the controller record. */
const CONFIG_STATUS = [0x206, 0x207];

function differences(a: Uint8Array, b: Uint8Array): number[] {
  return [...a.keys()].filter((at) => a[at] !== b[at]);
}
