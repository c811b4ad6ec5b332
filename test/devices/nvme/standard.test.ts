// SPDX-License-Identifier: Apache-2.0
/** The standard format and the converters, between every two vendors: what one gives, the other takes, and the guest continues. */

import { join } from 'node:path';
import t from 'tap';
import type { StateFormat, StateRecord } from '../../../src/device/index.js';
import { nvmeConverters } from '../../../src/devices/nvme/converters.js';
import { asDevstateError } from '../../../src/errors.js';
import {
  BlobConverter,
  decodeEnvelope,
  decodeNvmeState,
  EnvelopeEncoder,
  findPath,
  type NvmeState,
  newUuid,
} from '../../../src/formats/index.js';
import { createRig, DATA, imageFolder, type Rig, VENDORS, type Vendor } from './rig.js';

const FLUSH = 0;
const READ = 2;
const MANY = 60;

/** A quiesced controller with commands of all kinds under way; its guest waits for `MANY` completions of queue 1. */
async function busyRig(vendor: Vendor, path: string): Promise<Rig> {
  const rig = createRig({ vendor, path });
  rig.useMsix(5);
  await rig.enable();
  await rig.createPair(1, 100);
  await rig.createPair(3, 16, { cqEntries: 4, vector: 2 });
  for (let i = 0; i < 130; i++) await rig.run(1, { opcode: READ, nsid: 1, prp1: DATA });
  await rig.admin({ opcode: 0x7f });
  await rig.admin({ opcode: 9, cdw10: 9, cdw11: 0x10003 });
  await rig.admin({ opcode: 9, cdw10: 4, cdw11: 0x100007 });
  rig.queue(0, { opcode: 0x0c, cid: 0x200 });
  rig.submit(0);
  for (let i = 0; i < MANY; i++) rig.queue(1, { opcode: FLUSH, nsid: 1 });
  rig.submitAll(1, MANY);
  await rig.device.quiesce();
  return rig;
}

function formatOf(rig: Rig, name: string): StateFormat {
  const format = rig.device.formats.find((one) => one.name === name);
  if (format === undefined) throw new Error(`no format ${name}`);
  return format;
}

async function save(format: StateFormat): Promise<StateRecord[]> {
  const records: StateRecord[] = [];
  for await (const record of format.save('final')) records.push(record);
  return records;
}

async function load(format: StateFormat, records: readonly StateRecord[]): Promise<void> {
  const loader = format.load({ major: 1, minor: 0 });
  for (const record of records) loader.record(record);
  await loader.commit();
}

const withFlag = (records: readonly StateRecord[]) =>
  records.map(({ optional = false, ...record }) => ({ ...record, optional }));

/** Features in one order: that of a list of features says nothing. A feature at its default may be left out. */
function comparable(state: NvmeState): unknown {
  const features = state.features
    .filter(({ id, value }) => id !== 7 && !(id === 9 && value < 0x10000))
    .map(({ id, value }) => `${id} ${value}`);
  return { ...state, features: features.sort(), pci: { ...state.pci, msixPending: undefined } };
}

for (const from of VENDORS)
  for (const to of VENDORS) {
    t.test(`${from} to ${to}, in the standard format`, async (t) => {
      const path = join(imageFolder(t), 'disk');
      const rig = await busyRig(from, path);
      const records = await save(formatOf(rig, 'org.devstate.nvme'));
      const state = decodeNvmeState(withFlag(records));
      const length = records.reduce((sum, { payload }) => sum + payload.length, 0);
      t.ok(
        length < createFresh(t, from).device.formats[1]!.estimate(),
        `${length} bytes, as estimated while running`,
      );
      t.equal(state.commands.length > 0, from === 'birch', `${state.commands.length} commands in flight`);
      t.match(state.events.requests, [0x200]);

      await rig.device.releaseExclusive?.();
      const other = createRig({ vendor: to, path, guest: rig.guest, lock: false });
      t.teardown(() => other.image.close());
      await other.device.quiesce();
      await load(formatOf(other, 'org.devstate.nvme'), records);
      const again = decodeNvmeState(withFlag(await save(formatOf(other, 'org.devstate.nvme'))));
      t.same(comparable(again), comparable(state), 'what was taken is what was given');
      await goOn(t, other);
      await rig.image.close();
    });

    t.test(`${from} to ${to}, own formats, converted`, async (t) => {
      const path = join(imageFolder(t), 'disk');
      const rig = await busyRig(from, path);
      const blob = blobOf(rig, await save(rig.device.formats[0]!));
      const [own, theirs] = [rig.device.formats[0]!, formatOf(createFresh(t, to), `org.devstate.nvme.${to}`)];
      const way = findPath({ uuid: own.uuid, major: 1 }, { uuid: theirs.uuid, major: 1 }, nvmeConverters);
      t.equal(way?.length, from === to ? 0 : 2);
      const parts: Uint8Array[] = [];
      const converter = new BlobConverter({
        choose: () => way ?? [],
        producer: { name: 'test', version: '1' },
        write: (bytes) => parts.push(bytes.slice()),
      });
      for (let at = 0; at < blob.length; at += 100) converter.push(blob.subarray(at, at + 100));
      converter.finish();
      const { header, records } = decodeEnvelope(Buffer.concat(parts));
      t.equal(header.format, theirs.uuid);

      await rig.device.releaseExclusive?.();
      const other = createRig({ vendor: to, path, guest: rig.guest, lock: false });
      t.teardown(() => other.image.close());
      await other.device.quiesce();
      await load(other.device.formats[0]!, records);
      await goOn(t, other);
      await rig.image.close();
    });
  }

/** The guest gets every completion it waits for, and the event that it asked for. */
async function goOn(
  t: { equal(a: unknown, b: unknown): void; match(a: unknown, b: unknown): void },
  rig: Rig,
) {
  await rig.device.acquireExclusive?.();
  rig.useMsix(5);
  await rig.device.resume();
  for (let i = 0; i < MANY; i++) t.equal((await rig.completion(1)).status, 0);
  t.equal(rig.poll(1), undefined);
  t.match(await rig.admin({ opcode: 0x0a, cdw10: 9, cdw11: 3 }), { result: 0x10003 });
  t.match(await rig.admin({ opcode: 0x0a, cdw10: 4, cdw11: 0x100000 }), { result: 7 });
  // A doorbell of a queue that does not exist is an event.
  rig.write(0x1000 + 8 * 4, 1);
  t.match(await rig.completion(0), { cid: 0x200, result: 0x010000 });
}

function createFresh(t: { teardown(work: () => unknown): void }, vendor: Vendor): Rig {
  const rig = createRig({ vendor, path: join(imageFolder(t), 'disk') });
  t.teardown(() => rig.image.close());
  return rig;
}

function blobOf(rig: Rig, records: readonly StateRecord[]): Buffer {
  const { model, producer, formats } = rig.device;
  const encoder = new EnvelopeEncoder({
    format: formats[0]!.uuid,
    version: formats[0]!.version,
    model: model.uri,
    parameters: { ...model.parameters },
    producer,
    stream: newUuid(),
    features: [],
    other: {},
  });
  const parts = [encoder.header()];
  for (const { type, payload } of records) parts.push(...encoder.record(type, 0, payload));
  return Buffer.concat([...parts, encoder.end()]);
}

t.test('a state of another controller is refused, every difference named', async (t) => {
  const rig = createFresh(t, 'alder');
  await rig.device.quiesce();
  const state = decodeNvmeState(withFlag(await save(formatOf(rig, 'org.devstate.nvme'))));
  for (const vendor of VENDORS) {
    const other = createFresh(t, vendor);
    await other.device.quiesce();
    const { restoreStandard } = other.device as unknown as { restoreStandard(state: NvmeState): void };
    const identity = { ...state.identity, serial: 'OTHER', mdts: 3, queues: 2 };
    try {
      // The number of queues is said here as well.
      const features = state.features.filter(({ id }) => id !== 7);
      restoreStandard.call(other.device, { ...state, identity, features });
      t.fail('it was taken');
    } catch (error) {
      const { message } = asDevstateError(error);
      for (const name of [/OTHER/, /mdts/, /queues/]) t.match(message, name, vendor);
    }
  }
});

for (const vendor of VENDORS) {
  t.test(`${vendor} practises with a state that leaves no list empty, and forgets it`, async (t) => {
    const rig = createFresh(t, vendor);
    const { device } = rig;
    const standard = formatOf(rig, 'org.devstate.nvme');
    const current = async (): Promise<NvmeState> => decodeNvmeState(withFlag(await save(standard)));
    await device.quiesce();
    const fresh = await current();
    for (const format of device.formats) {
      const practised: StateRecord[] = [];
      for await (const record of format.practice?.() ?? []) practised.push(record);
      await load(format, practised);
      const state = await current();
      for (const list of ['submissionQueues', 'completionQueues', 'completions', 'commands'] as const)
        t.not(state[list].length, 0, `${format.name}: ${list}`);
      for (const list of ['requests', 'pending', 'masked'] as const)
        t.not(state.events[list].length, 0, list);
      t.not(state.health.errors.length, 0, 'errors');

      await device.reset('aborted');
      await device.quiesce();
      t.same(comparable(await current()), comparable(fresh), 'as if nothing had been');
    }
  });
}
