// SPDX-License-Identifier: Apache-2.0
/** Content of others: recognised, and read as expected, wherever it lies. */
import fc from 'fast-check';
import t from 'tap';
import { detectContent, FOREIGN_KINDS, probeLengthOf } from '../../../src/formats/foreign/index.js';
import type { ContentReport } from '../../../src/formats/index.js';
import { fixture } from '../blobs.js';
import { allSections, Extracted } from '../qemu-stream/reading.js';
import { check, kindNamed, readWith, samples } from './reading.js';
import { join, SAMPLES, u8, u16, u32, u64, virtioDeviceParts, zeros } from './samples.js';

t.test('every kind has a sample, and the fixtures are read as they were looked through', async (t) => {
  t.same([...SAMPLES.keys(), 'qemu-stream'].sort(), FOREIGN_KINDS.map(({ name }) => name).sort());
  for (const { name, kind, bytes } of samples) {
    t.ok(fixture(`foreign/${name}.bin`).equals(bytes), `${name}.bin is the sample`);
    const report = readWith(kind, bytes);
    t.same(report, JSON.parse(fixture(`foreign/${name}.json`).toString('utf8')), name);
    t.equal(report.error, null);
    t.equal(check(report, bytes.length), undefined);
  }
});

t.test('a kind recognises its own, and no other does', async (t) => {
  const all = [...samples, { name: 'qemu-stream', bytes: fixture('foreign/qemu-none.bin') }];
  for (const { name, bytes } of all) {
    t.equal(detectContent(bytes)?.name, name);
    t.equal(detectContent(bytes.subarray(0, probeLengthOf(FOREIGN_KINDS)))?.name, name, 'by its first bytes');
    for (const kind of FOREIGN_KINDS) {
      t.equal(kind.matches(bytes.subarray(0, kind.probeLength)), kind.name === name, `${kind.name}, ${name}`);
    }
    for (let length = 0; length < 64; length++) {
      const found = detectContent(bytes.subarray(0, length));
      if (found !== undefined && found.name !== name) t.fail(`${length} bytes of ${name} are ${found.name}`);
    }
  }
  t.equal(detectContent(new Uint8Array(0)), undefined);
  t.equal(detectContent(zeros(4096)), undefined, 'zeros are nothing');
  t.equal(detectContent(Buffer.alloc(4096, 0xff)), undefined);
  t.equal(detectContent(fixture('minimal.bin')), undefined, 'nor is a blob of ours');
  t.equal(detectContent(samples[0]!.bytes, []), undefined);
});

t.test('not recognised is what is only nearly of the kind', async (t) => {
  const nearly: [name: string, bytes: Uint8Array][] = [
    ['mlx5', join(u64(16), u32(1, 1), zeros(16))],
    ['mlx5', join(u64(8), u32(0, 1), zeros(8))],
    ['virtio-vfio', join(u64(20), u32(0, 0), virtioDeviceParts())],
    ['virtio-vfio', join(u64(307), u32(0, 1), virtioDeviceParts())],
    ['virtio-vfio', join(u64(307), u32(2, 0), virtioDeviceParts())],
    ['virtio-device-parts', join(u16(0x100), u8(1, 0), zeros(8), u32(12), zeros(12))],
    ['virtio-device-parts', join(u16(0x103), u8(0, 0), u8(1), zeros(7), u32(1), zeros(1))],
    ['virtio-device-parts', join(u16(0x200), u8(0, 0), zeros(8), u32(1), zeros(1))],
    ['xe', join(u8(1, 1, 0, 1), zeros(12), u64(16), u32(0xf0010001, 1))],
    ['xe', join(u8(1, 1, 0, 0), zeros(12), u64(16), u32(0xf0030001, 1))],
    ['xe', join(u8(1, 1, 0, 0), zeros(12), u64(1 << 20), u32(0xf0010001, 1))],
    ['nvme-controller-state', join(zeros(16), u64(3, 0), zeros(16), zeros(8))],
    ['nvme-controller-state', join(zeros(15), u8(1), u64(2, 0), zeros(16), zeros(8))],
    ['nvme-controller-state', join(u16(2), zeros(14), u64(2, 0), zeros(16), zeros(8))],
    ['qat', join(u32(0xadf5caea, 1), u16(15, 1), u32(0))],
    ['qat', join(u32(0xadf5caea, 0), u16(16, 1), u32(0))],
    ['spdk-nvme', join(u32(0xafedbc23, 0, 0, 1))],
  ];
  for (const [name, bytes] of nearly) {
    const { matches, probeLength } = kindNamed(name);
    t.equal(matches(bytes.subarray(0, probeLength)), false, `${name}: ${bytes.toString()}`);
  }
});

t.test('the length of the chunks says nothing', async () => {
  const chunks = fc.array(fc.integer({ min: 1, max: 700 }), { maxLength: 200 });
  for (const { kind, bytes } of samples) {
    const whole = JSON.stringify(readWith(kind, bytes));
    fc.assert(
      fc.property(chunks, (chunks) => JSON.stringify(readWith(kind, bytes, { chunks })) === whole),
      { numRuns: 30 },
    );
  }
});

t.test('offsets count from where the content begins in the input', async (t) => {
  for (const { name, kind, bytes } of samples) {
    const [here, there] = [readWith(kind, bytes), readWith(kind, bytes, { offset: 1000 })];
    const offsets = ({ sections }: ContentReport) => [...allSections(sections)].map(({ offset }) => offset);
    t.same(
      offsets(there),
      offsets(here).map((offset) => offset + 1000),
      name,
    );
    const cut = readWith(kind, bytes.subarray(0, 20), { offset: 1000 });
    t.equal(cut.error?.offset, 1020);
  }
});

t.test('bytes that follow the end of what has one', async (t) => {
  for (const name of ['mtty', 'hisi-acc', 'xe']) {
    const bytes = SAMPLES.get(name)!;
    const report = readWith(kindNamed(name), join(bytes, u8(1, 2, 3)));
    t.match(report.error, { code: 'DEVSTATE_E_CONTENT_DAMAGED', offset: bytes.length });
    t.match(report.sections.at(-1), { name: null, size: 3, first: '010203' });
  }
});

t.test('device parts within a record come out byte for byte', async (t) => {
  const extraction = new Extracted();
  readWith(kindNamed('virtio-vfio'), SAMPLES.get('virtio-vfio')!, { extraction, chunks: [3, 100] });
  t.same(Object.fromEntries(extraction.files), { 'virtio-device-parts.bin': virtioDeviceParts() });
  const cut = new Extracted();
  readWith(kindNamed('virtio-vfio'), SAMPLES.get('virtio-vfio')!.subarray(0, 100), { extraction: cut });
  t.equal(cut.open.size, 0, 'and the file is ended when the stream is cut');
});

/** A QEMU stream with one VFIO device, whose data comes in two pieces. */
function qemuStreamWith(data: Buffer): Buffer {
  const be32 = (value: number) => u32(value).reverse();
  const be64 = (value: number | bigint) => u64(value).reverse();
  const tag = (number: number) => be64(0xffffffffef100000n + BigInt(number));
  const name = Buffer.from('0000:00:04.0/vfio');
  const footer = join(u8(0x7e), be32(9));
  const piece = (bytes: Buffer) => join(tag(4), be64(bytes.length), bytes);
  const half = data.length >> 1;
  return join(
    Buffer.from('QEVM'),
    be32(3),
    join(u8(1), be32(9), u8(name.length), name, be32(0), be32(1), tag(3), tag(1), footer),
    join(u8(2), be32(9), piece(data.subarray(0, half)), tag(1), footer),
    join(u8(3), be32(9), piece(data.subarray(half)), tag(1), footer),
    u8(0),
  );
}

t.test('a device’s state within a QEMU stream is recognised and read', async (t) => {
  for (const { name, kind, bytes } of samples) {
    const stream = qemuStreamWith(bytes);
    const { error, sections } = readWith(kindNamed('qemu-stream'), stream, {
      kinds: FOREIGN_KINDS,
      chunks: [300, 77],
    });
    t.equal(error, null);
    const contents = [...allSections(sections)].flatMap(({ content }) => content ?? []);
    t.same(contents, [readWith(kind, bytes)], name);
  }
});
