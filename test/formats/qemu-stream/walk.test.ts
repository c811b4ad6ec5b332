// SPDX-License-Identifier: Apache-2.0
/** A stream with one of everything: what is said of it, in chunks of any size, cut anywhere, damaged anywhere. */
import fc from 'fast-check';
import t from 'tap';
import { qemuStreamKind, readVmDescription } from '../../../src/formats/qemu-stream/index.js';
import { allSections, Extracted, markKind, read, sumOfSizes } from './reading.js';
import {
  DESCRIPTION,
  DEVICE_STATE,
  DISK_STATE,
  ELEMENTS,
  HELPER_STATE,
  inMemory,
  STREAM,
} from './streams.js';

const kinds = [markKind];
const REPORT = read(STREAM, { kinds });
const sectionsNamed = (name: string) => REPORT.sections.filter((section) => section.name === name);

t.test('is recognised by its magic and version', async (t) => {
  const { matches, probeLength } = qemuStreamKind;
  t.equal(matches(STREAM.subarray(0, probeLength)), true);
  t.equal(matches(STREAM.subarray(0, probeLength - 1)), false);
  t.equal(matches(Buffer.from('QEVM\0\0\0\x02')), false);
  t.equal(matches(Buffer.from('QEVN\0\0\0\x03')), false);
});

t.test('every element is listed, where it is', async (t) => {
  t.equal(REPORT.error, null);
  t.equal(REPORT.kind, 'qemu-stream');
  t.equal(REPORT.size, STREAM.length);
  t.same(REPORT.fields, { version: 3, machine: 'pc-q35-11.1', capabilities: ['auto-converge', 'xbzrle'] });
  let offset = 0;
  const expected = ELEMENTS.map(([name, { length: size }]) => {
    offset += size;
    return { name, offset: offset - size, size };
  });
  t.same(
    REPORT.sections.map(({ name, offset, size }) => ({ name, offset, size })),
    expected,
  );
  for (const section of allSections(REPORT.sections)) {
    let end = section.offset;
    for (const child of section.sections) {
      t.ok(child.offset >= end, `${child.name} follows its sibling in ${section.name}`);
      end = child.offset + child.size;
    }
    t.ok(end <= section.offset + section.size, `${section.name} holds all that is in it`);
  }
});

t.test('what elements say', async (t) => {
  const [configuration] = sectionsNamed('configuration');
  t.match(configuration, {
    fields: { machine: 'pc-q35-11.1' },
    sections: [
      { name: 'configuration/target-page-bits', size: 40, fields: { pageSize: 4096 } },
      { name: 'configuration/capabilities', size: 57, fields: { capabilities: ['auto-converge', 'xbzrle'] } },
      { name: 'configuration/uuid', size: 40, fields: { uuid: '00112233-4455-6677-8899-aabbccddeeff' } },
    ],
  });
  t.same(
    sectionsNamed('command').map(({ fields, first }) => [fields, first]),
    [
      [{ command: 'OPEN_RETURN_PATH', length: 0 }, null],
      [{ command: 'PING', length: 4 }, '00000001'],
      [{ command: 'SWITCHOVER_START', length: 0 }, null],
    ],
  );
  const ram = { id: 2, instance: 0, version: 4 };
  t.same(
    sectionsNamed('ram').map(({ fields }) => fields),
    [
      { section: 'START', ...ram, bytes: 1056768, blocks: { 'pc.ram': 1048576, 'pc.rom': 8192 } },
      { section: 'PART', ...ram, pages: 2, zeroPages: 2, multifdFlushes: 1 },
      { section: 'PART', ...ram, xbzrlePages: 1, compressedPages: 1 },
      { section: 'END', ...ram },
    ],
  );
  const bitmap = { id: 3, instance: 0, version: 1 };
  t.same(
    sectionsNamed('dirty-bitmap').map(({ fields }) => fields),
    [
      { section: 'START', ...bitmap, bitmaps: ['node/map'] },
      { section: 'PART', ...bitmap, chunks: 2 },
      { section: 'END', ...bitmap },
    ],
  );
  t.match(sectionsNamed('spapr/htab'), [
    { fields: { section: 'START', length: 4 }, first: '00000018' },
    { fields: { section: 'PART', length: 111 }, first: '04'.repeat(16) },
    { fields: { section: 'END', length: 0 }, first: null },
  ]);
  t.same(sectionsNamed('vmdescription')[0]?.fields.devices, DESCRIPTION.devices.length);
});

t.test('fields of devices', async (t) => {
  const cpu = { section: 'FULL', id: 9, instance: 3, version: 12, state: { pc: 0x1000 } };
  t.same(sectionsNamed('cpu')[0]?.fields, cpu);
  const [disk] = sectionsNamed('0000:00:05.0/disk');
  t.same(disk?.fields.state, DISK_STATE);
  t.match(disk?.sections, [
    {
      name: 'disk/more',
      fields: { version: 2, state: { a: 10 } },
      sections: [{ name: 'disk/more/yet', fields: { version: 3, state: { b: 11 } } }],
    },
  ]);
  t.same(sectionsNamed('slirp')[0]?.fields.state, { data: 'deadbeef' });
});

t.test('content within is extracted and looked into', async (t) => {
  const extraction = new Extracted();
  t.same(read(STREAM, { kinds, extraction }), REPORT);
  t.same(Object.fromEntries(extraction.files), {
    '0000-00-06.0-vfio.bin': DEVICE_STATE,
    'dbus-vmstate.disk-0.bin': HELPER_STATE,
    'dbus-vmstate.other.bin': Buffer.from('?'),
  });
  t.same([...extraction.open], []);

  const [setup, part, end, config] = sectionsNamed('0000:00:06.0/vfio');
  t.match(setup?.sections, [{ name: 'DEV_SETUP_STATE' }, { name: 'END_OF_STATE' }]);
  t.match(part, {
    content: null,
    sections: [{ name: 'DEV_DATA_STATE', size: 1016 }, { name: 'DEV_INIT_DATA_SENT' }],
  });
  t.match(end, {
    extract: '0000-00-06.0-vfio.bin',
    content: { kind: 'mark', size: DEVICE_STATE.length, fields: { offset: 0, last: DEVICE_STATE.at(-1) } },
    fields: { deviceData: { pieces: 2, length: DEVICE_STATE.length } },
  });
  t.match(config?.sections, [
    { name: 'DEV_CONFIG_STATE', fields: { length: 300 } },
    { name: 'END_OF_STATE' },
  ]);

  const [helpers] = sectionsNamed('dbus-vmstate/dbus-vmstate');
  t.match(helpers, {
    fields: { helpers: 3, missing: 1 },
    sections: [
      {
        name: 'Disk 0',
        extract: 'dbus-vmstate.disk-0.bin',
        content: { kind: 'mark', size: HELPER_STATE.length },
      },
      { name: 'other', extract: 'dbus-vmstate.other.bin', content: null, first: '3f' },
      { name: 'padding', size: 77, fields: { zero: true } },
    ],
  });
  t.equal(
    helpers?.sections[0]?.content?.fields.offset,
    STREAM.indexOf(HELPER_STATE),
    'offsets are those of the input',
  );

  const none = read(STREAM);
  const first = none.sections
    .flatMap(({ sections }) => sections)
    .find(({ name }) => name === 'Disk 0')?.first;
  t.equal(first, HELPER_STATE.subarray(0, 16).toString('hex'), 'without kinds it is unknown');
});

t.test('offsets count from where the stream begins in the input', async (t) => {
  const moved = read(STREAM, { kinds, offset: 1000 });
  t.same(
    [...allSections(moved.sections)].map(({ offset }) => offset - 1000),
    [...allSections(REPORT.sections)].map(({ offset }) => offset),
  );
});

t.test('the same through a pipe, in chunks of any size', async (t) => {
  t.same(read(STREAM, { kinds, pipe: true }), REPORT);
  for (const pipe of [false, true]) {
    t.same(read(STREAM, { kinds, pipe, chunks: Array(STREAM.length).fill(1) }), REPORT, 'single bytes');
  }
  const chunks = fc.array(fc.oneof(fc.nat(16), fc.nat(5000)), { minLength: 1, maxLength: 40 });
  fc.assert(
    fc.property(chunks, fc.boolean(), (chunks, pipe) => {
      return JSON.stringify(read(STREAM, { kinds, pipe, chunks })) === JSON.stringify(REPORT);
    }),
    { numRuns: 200 },
  );
});

t.test('without a description devices have no fields, and the same places', async (t) => {
  const [, { length }] = ELEMENTS.at(-1)!;
  const bare = STREAM.subarray(0, STREAM.length - length);
  t.equal(readVmDescription(inMemory(bare)), undefined);
  const report = read(bare, { kinds });
  t.equal(report.error, null);
  t.same(read(bare, { kinds, pipe: true }), report);
  const places = (sections: typeof report.sections) =>
    sections.map(({ name, offset, size }) => [name, offset, size]);
  t.same(places(report.sections), places(REPORT.sections.slice(0, -1)));
  const disk = report.sections.find(({ name }) => name === '0000:00:05.0/disk');
  t.match(disk, { fields: { length: 204 }, first: /^01fe1f90/, sections: [] });
  t.notOk(disk?.fields.state);
});

t.test('cut anywhere, it says where and shows what is there', async (t) => {
  const whole = new Set([STREAM.length, STREAM.length - ELEMENTS.at(-1)![1].length]);
  const wrong: number[] = [];
  for (let length = 0; length <= STREAM.length; length++) {
    const report = read(STREAM.subarray(0, length), { kinds, pipe: length % 2 === 1 });
    const { error } = report;
    const cut = error?.code === 'DEVSTATE_E_CONTENT_TRUNCATED' && error.offset === length;
    const sound = whole.has(length) ? error === null : cut;
    if (!sound || sumOfSizes(report.sections) !== length) wrong.push(length);
  }
  t.same(wrong, []);
  const inside = read(STREAM.subarray(0, 11200));
  t.match(inside.error?.message, /stops before its end.*in the section 0000:00:05.0\/disk at offset 11074/);
  t.match(inside.sections.at(-1), { name: '0000:00:05.0/disk', size: 126, fields: { incomplete: true } });
});

t.test('damaged anywhere, nothing is thrown and every byte is accounted for', async () => {
  const change = fc.tuple(fc.nat(STREAM.length - 1), fc.integer({ min: 1, max: 255 }));
  const cases = fc.tuple(
    fc.array(change, { minLength: 1, maxLength: 8 }),
    fc.boolean(),
    fc.array(fc.nat(3000), { maxLength: 5 }),
  );
  fc.assert(
    fc.property(cases, ([changes, pipe, chunks]) => {
      const bytes = Buffer.from(STREAM);
      for (const [at, difference] of changes) bytes[at]! ^= difference;
      const extraction = new Extracted();
      const report = read(bytes, { kinds, pipe, chunks, extraction });
      return sumOfSizes(report.sections) === bytes.length && extraction.open.size === 0;
    }),
    { numRuns: 3000 },
  );
});
