// SPDX-License-Identifier: Apache-2.0
/**
 * Conversion of whole files: there and back byte for byte, blobs of newer writers with nothing lost, what is refused.
 * And comparison, which converts.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import protobuf from 'protobufjs';
import t, { type Test } from 'tap';
import { asDevstateError } from '../../src/errors.js';
import { crc32c, decodeEnvelope, type EnvelopeHeader } from '../../src/formats/index.js';
import {
  type ConvertOptions,
  type ConvertResult,
  convertFile,
  type DiffResult,
  diffFiles,
  type InspectedFile,
  inspectFile,
  listFormats,
  verifyFile,
  withInput,
  withOutput,
} from '../../src/operations/index.js';
import { DATA } from '../devices/nvme/rig.js';
import { encodeBlob, type PlainRecord } from '../formats/blobs.js';
import { savedBlob } from './files/saved.js';

const STANDARD = 'org.devstate.nvme';
const VENDORS = ['alder', 'birch'] as const;
const NATIVE = VENDORS.map((vendor) => `${STANDARD}.${vendor}`);

/** Files of one test, by names. */
class Folder {
  readonly #directory: string;

  constructor(t: Test) {
    this.#directory = t.testdir();
  }

  path(name: string): string {
    return join(this.#directory, name);
  }

  write(name: string, bytes: Uint8Array): void {
    writeFileSync(this.path(name), bytes);
  }

  read(name: string): Uint8Array {
    return new Uint8Array(readFileSync(this.path(name)));
  }

  convert(from: string, to: string, options: ConvertOptions): Promise<ConvertResult> {
    return withInput(this.path(from), (input) =>
      withOutput(this.path(to), (output) => convertFile(input, output, options)),
    );
  }

  inspect(name: string): Promise<InspectedFile> {
    return withInput(this.path(name), (input) => inspectFile(input));
  }

  diff(a: string, b: string): Promise<DiffResult> {
    return withInput(this.path(a), (left) => withInput(this.path(b), (right) => diffFiles(left, right)));
  }
}

/** What a blob holds, apart from who wrote it and when. */
function contentOf(blob: Uint8Array) {
  const { header, records } = decodeEnvelope(blob);
  const { format, version, model, parameters } = header;
  return {
    ...{ format, version, model, parameters },
    records: records.map(({ type, flags, payload }) => ({
      type,
      flags: flags & ~0xfffe,
      payload: [...payload],
    })),
  };
}

/** Every field, and the length of every record. */
async function shapeOf(folder: Folder, name: string): Promise<unknown> {
  const { inspection } = await folder.inspect(name);
  if (inspection.kind !== 'envelope') throw new Error(`${name} is ${inspection.kind}`);
  const { fields, records, fieldsOmitted } = inspection;
  return { fields, fieldsOmitted, lengths: records.map(({ name, length }) => [name, length]) };
}

function recordsOf(blob: Uint8Array): { header: EnvelopeHeader; records: PlainRecord[] } {
  const { header, records } = decodeEnvelope(blob);
  return {
    header,
    records: records.map(({ type, flags, payload }) => ({ type, flags, payload: payload.slice() })),
  };
}

async function codeOf(work: Promise<unknown>): Promise<string> {
  try {
    await work;
    return '';
  } catch (error) {
    const { code, message } = asDevstateError(error);
    return `${code}: ${message}`;
  }
}

for (const [index, vendor] of VENDORS.entries()) {
  for (const features of [[], ['deflate']]) {
    t.test(`${vendor} there and back, ${features[0] ?? 'plain'}`, async (t) => {
      const folder = new Folder(t);
      const other = NATIVE[1 - index]!;
      folder.write('own', await savedBlob(t, { vendor, features }));
      const own = contentOf(folder.read('own'));
      for (const [between, way] of [
        [STANDARD, [`${NATIVE[index]} 1.0`, `${STANDARD} 1.0`]],
        [other, [`${NATIVE[index]} 1.0`, `${STANDARD} 1.0`, `${other} 1.0`]],
      ] as const) {
        const there = await folder.convert('own', 'there', { to: between });
        t.same(there.way, way);
        t.same(there.losses, []);
        t.equal(there.bytes, folder.read('there').length);
        const { header } = decodeEnvelope(folder.read('there'));
        t.same(header.features, features, 'compressed as the input is');
        t.equal(header.other.converted_from, `${NATIVE[index]} 1.0`);
        await folder.convert('there', 'back', { to: `${NATIVE[index]}@1.0` });
        t.same(await shapeOf(folder, 'back'), await shapeOf(folder, 'own'), `by way of ${between}`);
        // MessagePack keeps an order of keys that means nothing; memory images have none.
        if (vendor === 'birch') t.same(contentOf(folder.read('back')), own, 'every record byte for byte');
        t.match(await withInput(folder.path('back'), (input) => verifyFile(input)), { intact: true });
        t.match(await folder.diff('own', 'there'), { same: true, differences: [], remarks: [] });
      }
      await folder.convert('own', 'same', { to: NATIVE[index]! });
      t.same(folder.read('same'), folder.read('own'), 'to its own format: the same bytes');
      const compress = features.length === 0;
      await folder.convert('own', 'otherwise', { to: NATIVE[index]!, compress });
      t.equal(folder.read('otherwise').length < folder.read('own').length, compress);
      t.same(contentOf(folder.read('otherwise')), own);
    });
  }
}

t.test('what is lost has to be allowed, and is named', async (t) => {
  const folder = new Folder(t);
  folder.write('own', await savedBlob(t));
  const to = 'org.nvmexpress.controller-state';
  const refusal = await codeOf(folder.convert('own', 'lossy', { to }));
  t.match(refusal, /^DEVSTATE_E_CONVERSION: .*without losing .*features.*--allow-lossy/);
  const { losses, way } = await folder.convert('own', 'lossy', { to, allowLossy: true });
  t.equal(way.length, 3);
  t.ok(losses.length > 3 && losses.every((loss) => refusal.includes(loss)), 'the same as was said before');
  const listed = listFormats(to)[0]?.convertsFrom[0]?.losses;
  t.same(losses, listed);
  const back = codeOf(folder.convert('lossy', 'back', { to: STANDARD, allowLossy: true }));
  t.match(await back, /DEVSTATE_E_CONVERSION: .*no way is known/);
  t.match(await codeOf(folder.diff('own', 'lossy')), /DEVSTATE_E_CONVERSION: .*cannot be compared/);
});

t.test('a blob of a newer minor version', async (t) => {
  const folder = new Folder(t);
  const { header, records } = recordsOf(await savedBlob(t, { format: STANDARD }));
  const unknown = [
    { type: 0x10077, flags: 1, payload: Buffer.from('what a later version adds') },
    { type: 0x0abcd, flags: 1, payload: Buffer.from('of the envelope') },
    { type: 0x10078, flags: 0x8001_0001, payload: new Uint8Array(5000).fill(7) },
  ];
  const newer = {
    ...header,
    version: { major: 1, minor: 9 },
    other: { later: { deep: [1, true, 'x'] }, note: 'kept' },
  };
  folder.write('newer', encodeBlob([...records, ...unknown], newer));
  const { inspection } = await folder.inspect('newer');
  t.match(inspection, { error: null, format: { name: STANDARD, version: '1.9' }, other: newer.other });
  if (inspection.kind !== 'envelope') return;
  t.same(
    inspection.records.slice(-3).map(({ name, first, length }) => [name, first, length]),
    unknown.map(({ payload }) => [
      null,
      Buffer.from(payload.subarray(0, 16)).toString('hex'),
      payload.length,
    ]),
    'shown as unknown, with length and first bytes',
  );
  t.equal(inspection.fields.length, records.length, 'what is known is shown');

  for (const way of [['alder'], ['birch'], ['alder', 'birch', 'alder']]) {
    let from = 'newer';
    for (const [index, vendor] of way.entries()) {
      await folder.convert(from, `step${index}`, { to: `${STANDARD}.${vendor}` });
      from = `step${index}`;
      t.match(await folder.inspect(from), { inspection: { error: null } });
    }
    await folder.convert(from, 'back', { to: STANDARD });
    const back = recordsOf(folder.read('back'));
    const find = (type: number) => back.records.find((record) => record.type === type);
    for (const { type, flags, payload } of unknown) {
      t.same(
        find(type),
        { type, flags, payload: new Uint8Array(payload) },
        `${type.toString(16)} by way of ${way}`,
      );
    }
    folder.write('known', encodeBlob(records, newer));
    const known = back.records.filter((record) => records.some(({ type }) => type === record.type));
    folder.write('back known', encodeBlob(known, newer));
    const { differences } = await folder.diff('known', 'back known');
    t.same(differences, [], `the state is the same by way of ${way}`);
    t.equal(back.records.length, records.length + unknown.length);
    t.match(back.header.other, newer.other, 'metadata that is not known here');
  }
  await folder.convert('newer', 'same', { to: STANDARD });
  t.same(folder.read('same'), folder.read('newer'), 'without conversion: the same bytes');
});

t.test('fields that a newer minor version adds to a record are shown as unknown', async (t) => {
  const folder = new Folder(t);
  const { header, records } = recordsOf(await savedBlob(t, { format: STANDARD }));
  /** A field that the schema does not have, and one within its first message. */
  const added = protobuf.Writer.create()
    .uint32((100 << 3) | 2)
    .string('later')
    .finish();
  const inner = protobuf.Writer.create()
    .uint32(8)
    .uint32(77)
    .uint32((99 << 3) | 0)
    .uint32(5)
    .finish();
  const queue = protobuf.Writer.create()
    .uint32((1 << 3) | 2)
    .bytes(inner)
    .finish();
  const changed = records.map((record) =>
    record.type === 0x10003 ? { ...record, payload: Buffer.concat([record.payload, queue, added]) } : record,
  );
  folder.write('newer', encodeBlob(changed, { ...header, version: { major: 1, minor: 4 } }));
  const { inspection } = await folder.inspect('newer');
  if (inspection.kind !== 'envelope') throw new Error('no blob');
  const queues = inspection.fields.find(({ name }) => name === 'queues')?.values;
  t.match(queues, { 'unknown field 100': { length: 8, first: /6c61746572$/ } });
  t.match(
    queues?.submissionQueues,
    { 3: { id: 77, 'unknown field 99': { length: 3 } } },
    'within what is in it, too',
  );
  await folder.convert('newer', 'same', { to: STANDARD });
  t.same(folder.read('same'), folder.read('newer'));

  // What is left of an odd queue: the vendors would refuse it.
  const sound = records.map((record) => ({ ...record, payload: Buffer.concat([record.payload, added]) }));
  folder.write('sound', encodeBlob(sound, { ...header, version: { major: 1, minor: 4 } }));
  for (const to of NATIVE) {
    await folder.convert('sound', 'native', { to });
    await folder.convert('native', 'back', { to: STANDARD });
    const back = recordsOf(folder.read('back')).records;
    t.same(
      back.map(({ type, flags, payload }) => ({
        type,
        flags,
        payload: Buffer.from(payload).toString('hex'),
      })),
      sound.map(({ type, flags, payload }) => ({ type, flags, payload: payload.toString('hex') })),
      `what is not known here comes back by way of ${to}`,
    );

    // The same originals beside a state that has changed meanwhile.
    const native = recordsOf(folder.read('native'));
    const later = recordsOf(
      await savedBlob(t, {
        vendor: VENDORS[NATIVE.indexOf(to)]!,
        more: (rig) => rig.run(1, { opcode: 2, nsid: 1, prp1: DATA }),
      }),
    );
    const kept = native.records.filter(({ type }) => type === 3);
    t.equal(kept.length, sound.length);
    folder.write('later', encodeBlob([...kept, ...later.records], later.header));
    await folder.convert('later', 'later standard', { to: STANDARD });
    const fields = recordsOf(folder.read('later standard')).records;
    const isOld = ({ payload }: { payload: Uint8Array }) => Buffer.from(payload).includes(Buffer.from(added));
    t.ok(fields.some(isOld), 'of the records that are the same, the originals');
    t.notOk(
      fields.filter(isOld).some(({ type }) => type === 0x10008),
      'of those that are not, what is true now',
    );
  }
});

t.test('what a reader must not skip is refused by name', async (t) => {
  const folder = new Folder(t);
  const { header, records } = recordsOf(await savedBlob(t, { format: STANDARD }));
  const to = NATIVE[0]!;
  folder.write('major', encodeBlob(records, { ...header, version: { major: 2, minor: 0 } }));
  t.match(
    await codeOf(folder.convert('major', 'out', { to })),
    /DEVSTATE_E_CONVERSION: org\.devstate\.nvme 2\.0 /,
  );
  const { inspection } = await folder.inspect('major');
  t.match(inspection, { error: null, format: { version: '2.0' }, fields: [] });
  t.ok(
    inspection.kind === 'envelope' && inspection.records.every(({ name }) => name === null),
    'nothing is guessed',
  );

  folder.write(
    'record',
    encodeBlob([...records, { type: 0x10077, flags: 0, payload: new Uint8Array(3) }], header),
  );
  t.match(await codeOf(folder.convert('record', 'out', { to })), /_ENVELOPE_RECORD_UNKNOWN: .*0x00010077/);
  t.match(await folder.inspect('record'), { inspection: { error: null } });

  // An encoder writes no feature that it does not have: the name of one that it has is changed, and its checksums.
  const named = { ...header, features: ['deflate'] };
  const blob = Buffer.from(encodeBlob(records, named));
  blob.write('warpdrv', blob.indexOf('deflate'));
  const length = blob.readUInt32LE(36);
  blob.writeUInt32LE(crc32c(blob.subarray(48, 48 + length)), 40);
  blob.writeUInt32LE(crc32c(blob.subarray(0, 44)), 44);
  folder.write('feature', blob);
  t.match(await codeOf(folder.convert('feature', 'out', { to })), /_ENVELOPE_FEATURE: .*warpdrv/);
  t.match((await folder.inspect('feature')).inspection, { features: ['warpdrv'] });

  folder.write('twice', encodeBlob([...records, records[3]!], header));
  t.match(
    await codeOf(folder.convert('twice', 'out', { to })),
    /DEVSTATE_E_CONVERSION: .*queues came twice/i,
  );
  t.throws(() => folder.read('out'), { code: 'ENOENT' });
});

t.test('comparison', async (t) => {
  const folder = new Folder(t);
  const { header, records } = recordsOf(await savedBlob(t, { format: STANDARD }));
  folder.write('a', encodeBlob(records, header));
  folder.write('b', encodeBlob(records, { ...header, producer: { name: 'other', version: '9' } }));
  t.match(await folder.diff('a', 'b'), { same: true }, 'who saved it is no difference');
  folder.write(
    'c',
    await savedBlob(t, { more: (rig) => rig.run(3, { opcode: 0, nsid: 1 }), vendor: 'birch' }),
  );
  for (const [left, right] of [
    ['a', 'c'],
    ['c', 'a'],
  ] as const) {
    const { same, differences } = await folder.diff(left, right);
    t.equal(same, false);
    const head = differences.find(({ path }) => /submission.*\[id 3\]\.head$/i.test(path));
    t.ok(head !== undefined, differences.map(({ path }) => path).join(', '));
    t.same([head?.a, head?.b], left === 'a' ? [0, 1] : [1, 0]);
    t.notOk(
      differences.some(({ path }) => /\[id 1\]/.test(path)),
      'the other queue is the same',
    );
  }
  folder.write('d', encodeBlob(records, { ...header, parameters: { ...header.parameters, queues: 9 } }));
  t.same((await folder.diff('a', 'd')).differences, [{ path: 'parameters.queues', a: 4, b: 9 }]);
  folder.write('e', encodeBlob([...records, { type: 0x10099, flags: 1, payload: Buffer.from('x') }], header));
  t.match((await folder.diff('a', 'e')).differences, [
    { path: 'record 0x00010099', a: null, b: /^1 bytes, CRC-32C/ },
  ]);
});
