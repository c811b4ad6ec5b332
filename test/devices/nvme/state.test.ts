// SPDX-License-Identifier: Apache-2.0
/** State: saved in the middle of I/O and continued elsewhere; hostile state refused without harm. */

import { join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import type { StateRecord } from '../../../src/device/index.js';
import { AlderRecord } from '../../../src/devices/nvme/alder/index.js';
import {
  decodeMetadataMap,
  encodeMetadataMap,
  type MetadataMap,
  type MetadataValue,
  NVME_ALDER,
} from '../../../src/formats/index.js';
import { ConfigAccess } from '../../../src/runtime/config-access.js';
import { openFds } from '../../support/closes.js';
import { createRig, DATA, Guest, imageFolder, type MemoryKind, PAGE, type Rig, VENDORS } from './rig.js';

const READ = 2;
const WRITE = 1;

/** Ends the life of one controller and lets a second one, on the same guest and image, take over. */
async function move(t: Test, source: Rig): Promise<Rig> {
  await source.device.quiesce();
  const records = await source.save();
  t.same(await source.save(), records, 'saved twice, equal bytes');
  await source.device.releaseExclusive?.();
  t.notOk(source.image.locked);
  const destination = createRig({
    vendor: source.vendor,
    kind: source.kind,
    guest: source.guest,
    path: source.image.path,
    lock: false,
  });
  await destination.load(records);
  await destination.device.acquireExclusive?.();
  t.same(await destination.save(), records, 'loaded and saved, equal bytes');
  if (source.interrupts.msixEnabled) destination.useMsix(5);
  await destination.device.resume();
  await source.image.close();
  return destination;
}

for (const vendor of VENDORS) {
  for (const kind of ['mapped', 'remote'] satisfies MemoryKind[]) {
    t.test(`${vendor}: state, ${kind} memory`, async (t) => {
      const folder = imageFolder(t);

      t.test('there and back in the middle of I/O', async (t) => {
        let rig = createRig({ vendor, kind, path: join(folder, 'moves') });
        rig.useMsix(5);
        await rig.enable();
        await rig.createPair(1, 64, { cqEntries: 8 });
        await rig.createPair(2, 64);
        // Every block of the working set carries the number of the write that it saw last.
        const expected = new Map<number, number>();
        const outstanding = new Map<number, { qid: number; read: boolean; block: number; number: number }>();
        let number = 0;
        let completed = 0;
        const collect = (qid: number) => {
          for (let found = rig.poll(qid); found !== undefined; found = rig.poll(qid)) {
            t.equal(found.status, 0);
            const command = outstanding.get(found.cid);
            if (command === undefined) throw new Error(`command ${found.cid} completed twice`);
            outstanding.delete(found.cid);
            completed++;
            const page = DATA + (found.cid % 512) * PAGE - 0x10_0000;
            if (command.read)
              t.equal(
                rig.guest.view.getUint32(page, true),
                expected.get(command.block) ?? 0,
                'what was written',
              );
            else expected.set(command.block, command.number);
          }
        };
        for (let round = 0; completed < 300 && round < 300; round++) {
          for (const qid of [1, 2]) {
            for (
              let i = 0;
              i < 30 && [...outstanding.values()].filter((other) => other.qid === qid).length < 60;
              i++
            ) {
              // A block is written and read by one command at a time, because commands are not ordered.
              const block = (number * 13) % 512;
              number++;
              if ([...outstanding.values()].some((other) => other.block === block)) continue;
              const read = number % 3 === 0;
              const cid = rig.guest.nextCid % 512;
              if (outstanding.has(cid)) break;
              rig.guest.nextCid++;
              const page = DATA + (cid % 512) * PAGE;
              if (!read) rig.guest.view.setUint32(page - 0x10_0000, number, true);
              rig.queue(qid, {
                opcode: read ? READ : WRITE,
                cid,
                nsid: 1,
                prp1: page,
                cdw10: 8 * block,
                cdw12: 7,
              });
              outstanding.set(cid, { qid, read, block, number });
            }
            rig.submit(qid);
          }
          if (round % 3 === 1) {
            collect(2);
          }
          rig = await move(t, rig);
          collect(1);
          collect(2);
        }
        await rig.until('every command', () => {
          collect(1);
          collect(2);
          return outstanding.size === 0;
        });
        t.ok(completed >= 300, `${completed} commands`);
        t.equal(rig.poll(1) ?? rig.poll(2), undefined, 'no completion is left over');
        for (const [block, last] of expected) {
          await rig.run(2, { opcode: READ, cid: 600, nsid: 1, prp1: DATA, cdw10: 8 * block, cdw12: 7 });
          t.equal(rig.guest.view.getUint32(DATA - 0x10_0000, true), last);
        }
        await rig.image.close();
      });

      t.test('features, events, health and held completions move', async (t) => {
        let rig = createRig({ vendor, kind, path: join(folder, 'all') });
        rig.useMsix(5);
        await rig.enable();
        await rig.createPair(3, 16, { cqEntries: 2 });
        await rig.admin({ opcode: 9, cdw10: 6, cdw11: 0 });
        const event = rig.queue(0, { opcode: 0x0c });
        rig.submit(0);
        t.match(await rig.admin({ opcode: 0x7f }), { status: 1 });
        const held = [0, 1, 2].map((i) => rig.queue(3, { opcode: READ, nsid: 1, prp1: DATA + i * PAGE }));
        rig.submit(3);
        await rig.until('one completion', () => (rig.vectors[3] ?? 0) > 0);
        await rig.device.quiesce();
        rig.write(0x1000 + 8 * 4, 1);
        rig.write(0x0c, 0x80);
        rig = await move(t, rig);
        t.match(
          await rig.completion(0),
          { cid: event, status: 0, result: 0x010000 },
          'raised while quiesced, told later',
        );
        t.equal(rig.read(0x0c), 0x80);
        const got: number[] = [];
        for (const _ of held) {
          const { cid, status } = await rig.completion(3);
          t.equal(status, 0);
          got.push(cid);
        }
        t.same(got.toSorted(), held.toSorted(), 'in whatever order they ended');
        t.match(await rig.admin({ opcode: 0x0a, cdw10: 6 }), { result: 0 });
        await rig.admin({ opcode: 2, nsid: 0xffffffff, prp1: DATA, cdw10: 0x1f0002 });
        t.equal(rig.guest.view.getUint32(DATA - 0x10_0000 + 64, true), 3, 'reads are counted on');
        await rig.image.close();
      });

      t.test('quiesced, nothing happens; resumed, everything does', async (t) => {
        const rig = createRig({ vendor, kind, path: join(folder, 'quiesce') });
        t.teardown(() => rig.image.close());
        rig.useIntx();
        await rig.enable();
        await rig.createPair(1);
        await rig.device.quiesce();
        const before = rig.guest.bytes.slice();
        const cid = rig.queue(1, { opcode: READ, nsid: 1, prp1: DATA });
        before.set(rig.guest.slice(rig.ring(1).sq, 0x1000), rig.ring(1).sq - 0x10_0000);
        rig.submit(1);
        await rig.device.quiesce();
        t.ok(Buffer.compare(before, rig.guest.bytes) === 0);
        t.equal(rig.intx, 1);
        await rig.device.resume();
        t.match(await rig.completion(1), { cid, status: 0 });

        await rig.device.quiesce();
        rig.write(0x14, 0x460000);
        t.equal(rig.read(0x1c), 1, 'a disable waits');
        await rig.device.resume();
        await rig.until('disabled', () => rig.read(0x1c) === 0);
        await rig.device.quiesce();
        rig.write(0x14, 0x460001);
        t.equal(rig.read(0x1c), 0, 'an enable waits');
        await rig.device.releaseExclusive?.();
        await rig.device.resume();
        t.equal(rig.read(0x1c), 1);
        t.ok(rig.image.locked);

        await rig.device.quiesce();
        await rig.device.releaseExclusive?.();
        const other = createRig({ vendor, path: rig.image.path });
        t.throws(() => rig.device.acquireExclusive?.(), {
          name: 'RequestError',
          message: /in use by another process/,
        });
        t.throws(() => rig.device.resume(), { message: /EBUSY/ });
        await other.image.close();
        await rig.device.resume();
        t.ok(rig.image.locked);
      });
    });
  }

  t.test(`${vendor}: MSI-X enabled in the config space, eventfds still to come`, async (t) => {
    const rig = createRig({ vendor, path: join(imageFolder(t), 'msix') });
    rig.useMsix(5);
    const msix = rig.device.config.findCapability(0x11);
    new ConfigAccess(rig.device.config).write(msix + 3, Uint8Array.of(0x80));
    await rig.enable();
    await rig.createPair(1);
    rig.queue(1, { opcode: 0, nsid: 1 });
    rig.submit(1);
    await rig.until('an interrupt', () => rig.vectors[1] === 1);
    await rig.device.quiesce();
    const records = await rig.save();
    await rig.device.releaseExclusive?.();
    await rig.image.close();
    const destination = createRig({ vendor, guest: rig.guest, path: rig.image.path, lock: false });
    t.teardown(() => destination.image.close());
    destination.useIntx();
    await destination.load(records);
    await destination.device.acquireExclusive?.();
    await destination.device.resume();
    t.equal(destination.intx, 0, 'not told by INTx');
    destination.useMsix(5);
    t.equal(destination.vectors[1], 1, 'told as soon as the VMM listens');
  });
}

t.test('format of alder', async (t) => {
  const folder = imageFolder(t);
  const rig = createRig({ path: join(folder, 'format') });
  t.teardown(() => rig.image.close());
  rig.useMsix(5);
  await rig.enable();
  await rig.createPair(1);
  const cid = rig.queue(0, { opcode: 0x0c });
  rig.submit(0);
  t.type(cid, 'number');
  await rig.admin({ opcode: 0x7f });
  await rig.createPair(2, 8, { cqEntries: 2 });
  for (let i = 0; i < 3; i++) rig.queue(2, { opcode: READ, nsid: 1, prp1: DATA });
  rig.submit(2);
  const format = rig.device.formats[0]!;
  t.match(format, {
    uuid: NVME_ALDER.uuid,
    name: 'org.devstate.nvme.alder',
    version: { major: 1, minor: 0 },
  });
  t.same([...(format.save('pre-copy') as Iterable<StateRecord>)], []);
  await rig.device.quiesce();
  const records = await rig.save();
  t.same(
    records.map(({ type }) => type),
    Object.values(AlderRecord).filter((type) => type !== AlderRecord.COMMANDS),
  );
  t.ok(records.reduce((sum, { payload }) => sum + payload.length, 0) < format.estimate());
  t.throws(() => format.load({ major: 2, minor: 0 }), { message: /2\.0 cannot be read/ });

  await rig.device.releaseExclusive?.();
  const target = createRig({ path: rig.image.path, lock: false, guest: new Guest() });
  t.teardown(() => target.image.close());
  await target.device.quiesce();
  const pristine = await target.save();

  t.test('what is refused by name', async (t) => {
    const refuse = (changed: readonly StateRecord[], message: RegExp, what: string) =>
      t.rejects(target.load(changed), { name: 'RequestError', message }, what);
    await refuse(records.slice(1), /identity record is missing/, 'a record missing');
    await refuse([...records, records[2]!], /queues record came twice/, 'a record twice');
    await refuse(
      [...records, { type: 0x1ffff, payload: new Uint8Array(1) }],
      /type 0x1ffff is unknown/,
      'an unknown one',
    );
    await refuse(
      [{ type: AlderRecord.ADMIN, payload: new Uint8Array(9).fill(0xdf) }],
      /admin record is damaged/,
      'garbage',
    );
    const edit = (type: number, change: (map: MetadataMap) => void) =>
      records.map((record) => {
        if (record.type !== type) return record;
        const map = decodeMetadataMap(record.payload);
        change(map);
        return { type, payload: encodeMetadataMap(map) };
      });
    const map = (value: MetadataValue | undefined) => value as MetadataMap;
    const queue = (value: MetadataMap, list: string, index: number) => (value[list] as MetadataMap[])[index]!;
    const cases: [string, number, (value: MetadataMap) => void, RegExp][] = [
      [
        'serial',
        0x10000,
        (v) => Object.assign(map(v.parameters), { serial: 'other', mdts: 5 }),
        /mdts is 5 there, 7 here|serial is other/,
      ],
      ['nguid', 0x10000, (v) => ((v.nguid as Uint8Array)[0]! ^= 1), /another namespace/],
      ['vendor', 0x10001, (v) => ((v.config as Uint8Array)[0]! ^= 1), /config space differs at 0x0/],
      ['page size', 0x10001, (v) => (map(v.registers).cc = 0x460701), /page size/],
      ['admin queue', 0x10001, (v) => (map(v.registers).asq = 0x1000), /not where its register says/],
      ['not ready', 0x10001, (v) => (map(v.registers).csts = 0), /not ready has queues/],
      ['shutting down', 0x10001, (v) => (map(v.registers).csts = 5), /shutdown is under way/],
      ['table', 0x10001, (v) => (v.msixTable = new Uint8Array(16)), /MSI-X table/],
      ['head', 0x10002, (v) => (queue(v, 'submission', 1).head = 64), /beyond its end/],
      ['size', 0x10002, (v) => (queue(v, 'submission', 1).size = 1025), /more entries/],
      ['base', 0x10002, (v) => (queue(v, 'submission', 1).base = 0x123), /page aligned/],
      [
        'far',
        0x10002,
        (v) => (queue(v, 'submission', 1).base = Number.MAX_SAFE_INTEGER - 4095),
        /address space/,
      ],
      ['id', 0x10002, (v) => (queue(v, 'submission', 1).id = 0), /out of order/],
      ['id too high', 0x10002, (v) => (queue(v, 'completion', 2).id = 9), /does not exist here/],
      ['orphan', 0x10002, (v) => (queue(v, 'submission', 1).cq = 3), /no completion queue/],
      ['vector', 0x10002, (v) => (queue(v, 'completion', 1).vector = 5), /vector that does not exist/],
      ['held', 0x10002, (v) => (queue(queue(v, 'completion', 2), 'held', 0).sq = 1), /not its own/],
      ['no admin', 0x10002, (v) => (v.submission as MetadataMap[]).shift(), /admin queue is missing/],
      ['requests', 0x10003, (v) => (map(v.events).requests = [1, 1]), /one identifier/],
      ['more requests', 0x10003, (v) => (map(v.events).requests = [1, 2, 3, 4, 5]), /events\.requests/],
      ['feature', 0x10003, (v) => (map(v.features).coalescingDisabled = [200]), /vector that does not exist/],
      ['surplus', 0x10003, (v) => (v.surplus = 1), /admin record is wrong/],
    ];
    for (const [what, type, change, message] of cases)
      await refuse(
        edit(type, (v) => void change(v)),
        message,
        what,
      );
    t.same(await target.save(), pristine, 'unchanged by all of it');
  });

  t.test('every field changed to anything: refused, or harmless', async (t) => {
    const open = openFds;
    const before = open();
    const anything: fc.Arbitrary<MetadataValue> = fc.oneof(
      fc.maxSafeInteger(),
      fc.nat(70000),
      fc.boolean(),
      fc.string({ unit: 'grapheme-ascii', maxLength: 8 }),
      fc.uint8Array({ maxLength: 300 }),
      fc.array(fc.nat(300), { maxLength: 5 }),
      fc.constant({}),
    );
    let loaded = 0;
    for (const [index, record] of records.entries()) {
      for (const path of leaves(decodeMetadataMap(record.payload))) {
        for (const value of fc.sample(anything, { numRuns: 6, seed: 7 })) {
          const root = decodeMetadataMap(record.payload);
          set(root, path, value);
          const victim = createRig({ path: rig.image.path, lock: false });
          const changed = records.with(index, { type: record.type, payload: encodeMetadataMap(root) });
          try {
            await victim.load(changed);
            loaded++;
            victim.image.lock();
            await victim.device.resume();
            await victim.device.quiesce();
            await victim.save();
          } catch (error) {
            if ((error as Error).name !== 'RequestError')
              throw new Error(`${path.join('.')} = ${String(value)}`, { cause: error });
          }
          await victim.device.reset('aborted');
          await victim.image.close();
        }
      }
    }
    t.ok(loaded > 0, `${loaded} of the changes were loaded`);
    t.equal(open(), before);
  });

  t.test('every byte flipped, every length cut: never a crash', async (t) => {
    for (const [index, record] of records.entries()) {
      for (let at = 0; at < record.payload.length; at++) {
        const payload = record.payload.slice();
        payload[at]! ^= 1 << (at % 8);
        for (const changed of [payload, record.payload.slice(0, at)]) {
          const loader = target.device.formats[0]!.load({ major: 1, minor: 0 });
          try {
            for (const other of records.with(index, { type: record.type, payload: changed }))
              await loader.record(other);
            await loader.commit();
          } catch (error) {
            if ((error as Error).name !== 'RequestError') throw error;
          }
        }
      }
    }
    await target.device.reset('aborted');
    await target.device.quiesce();
    t.same(await target.save(), pristine, 'as good as new after a reset');
  });
});

/** Paths of everything in a value that is not a map or list of its own, and of lists. */
function leaves(value: MetadataValue, path: (string | number)[] = []): (string | number)[][] {
  if (typeof value !== 'object' || value instanceof Uint8Array) return [path];
  const inner = Object.keys(value).flatMap((key) =>
    leaves((value as MetadataMap)[key]!, [...path, Array.isArray(value) ? Number(key) : key]),
  );
  return path.length > 0 ? [path, ...inner] : inner;
}

function set(root: MetadataMap, path: (string | number)[], value: MetadataValue): void {
  let at = root as Record<string | number, MetadataValue>;
  for (const key of path.slice(0, -1)) at = at[key] as unknown as Record<string | number, MetadataValue>;
  at[path.at(-1)!] = value;
}
