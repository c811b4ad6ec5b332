// SPDX-License-Identifier: Apache-2.0
/** Content of others: recognised, read, cut anywhere, damaged anywhere, without end. */
import fc from 'fast-check';
import t from 'tap';
import { detectContent, FOREIGN_KINDS, probeLengthOf } from '../../../src/formats/foreign/index.js';
import type { ContentKind, ContentReport } from '../../../src/formats/index.js';
import { fixture } from '../blobs.js';
import { allSections, Extracted, sumOfSizes } from '../qemu-stream/reading.js';
import { readWith } from './reading.js';
import { join, SAMPLES, u8, u16, u32, u64, virtioDeviceParts, zeros } from './samples.js';

const kindNamed = (name: string): ContentKind => {
  const kind = FOREIGN_KINDS.find((one) => one.name === name);
  if (kind === undefined) throw new Error(`no kind ${name}`);
  return kind;
};
const samples = [...SAMPLES].map(([name, bytes]) => ({ name, kind: kindNamed(name), bytes }));
/** What is said must not grow with the content. */
const REPORT_LENGTH_MAX = 4 << 20;

function check(report: ContentReport, length: number): string | undefined {
  if (report.size !== length) return `size ${report.size}`;
  if (sumOfSizes(report.sections) !== length) return `the sections sum up to ${sumOfSizes(report.sections)}`;
  let end = 0;
  for (const { offset, size } of report.sections) {
    if (offset !== end) return `a section at ${offset} follows the end ${end}`;
    end = offset + size;
  }
  return undefined;
}

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

/** Where a sample may end without anything missing: after this many bytes. */
const WHOLE_AT: ReadonlyMap<string, (length: number) => boolean> = new Map([
  // Sent during pre-copy, or all there is of a device that was not set up.
  ['hisi-acc', (length: number) => length === 40],
  // Records and parts have no end; what follows the state of the others means nothing.
  ['mlx5', (length: number) => [0, 24, 140, 161].includes(length)],
  ['virtio-vfio', (length: number) => [0, 323].includes(length)],
  ['virtio-device-parts', (length: number) => [0, 32, 64, 82, 100, 117, 165, 213, 237, 261].includes(length)],
  ['qat', (length: number) => length >= 448 || (length >= 90 && length < 94)],
  ['spdk-nvme', (length: number) => length >= 16608],
  ['nvme-controller-state', (length: number) => length >= 140],
]);

t.test('cut anywhere, it is told of, and every byte is accounted for', async (t) => {
  for (const { name, kind, bytes } of samples) {
    for (let length = 0; length < bytes.length; length++) {
      const report = readWith(kind, bytes.subarray(0, length));
      const problem = check(report, length);
      if (problem !== undefined) t.fail(`${name} cut at ${length}: ${problem}`);
      const { code, offset } = report.error ?? {};
      if (WHOLE_AT.get(name)?.(length)) {
        if (code !== undefined) t.fail(`${name} cut at ${length}, where it may end: ${code}`);
      } else if (code !== 'DEVSTATE_E_CONTENT_TRUNCATED' || offset !== length) {
        // The first bytes decide what it is.
        if (name !== 'qat' || length >= 4) t.fail(`${name} cut at ${length}: ${code} at ${offset}`);
      }
    }
    t.pass(name);
  }
});

t.test('damaged anywhere, nothing is thrown and every byte is accounted for', async (t) => {
  const seen = new Map<string, Set<string>>();
  for (const { name, kind, bytes } of samples) {
    const codes = new Set<string>();
    seen.set(name, codes);
    // Where there are more than zeros.
    const places = [...bytes.keys()].filter((at) => at < 600 || bytes[at] !== 0);
    const edits = fc.array(fc.tuple(fc.constantFrom(...places), fc.integer({ min: 0, max: 255 })), {
      minLength: 1,
      maxLength: 4,
    });
    fc.assert(
      fc.property(edits, fc.nat(bytes.length), (edits, length) => {
        const damaged = Buffer.from(bytes);
        for (const [at, value] of edits) damaged[at] = value;
        const cut = length % 3 === 0 ? damaged.subarray(0, length) : damaged;
        const report = readWith(kind, cut, { chunks: [5, 200] });
        codes.add(report.error?.code ?? 'none');
        detectContent(cut);
        return check(report, cut.length) === undefined && JSON.stringify(report).length < REPORT_LENGTH_MAX;
      }),
      { numRuns: 600 },
    );
  }
  for (const [name, codes] of seen) {
    t.ok(codes.has('none') && codes.has('DEVSTATE_E_CONTENT_TRUNCATED'), `${name}: ${[...codes].join()}`);
  }
  for (const name of ['mtty', 'hisi-acc', 'qat', 'xe']) {
    t.ok(seen.get(name)?.has('DEVSTATE_E_CONTENT_UNSUPPORTED'), `${name} of another version`);
  }
});

t.test('arbitrary bytes, alone and behind a beginning', async () => {
  const any = fc.uint8Array({ maxLength: 600, size: 'max' });
  for (const { kind, bytes } of samples) {
    fc.assert(
      fc.property(any, fc.nat(bytes.length), (rest, length) => {
        const head = bytes.subarray(0, Math.min(length, 5000));
        for (const all of [rest, Buffer.concat([head, rest])]) {
          detectContent(all);
          if (check(readWith(kind, all, { chunks: [1, 17, 300] }), all.length) !== undefined) return false;
        }
        return true;
      }),
      { numRuns: 300 },
    );
  }
});

/** Content that goes on for ever, and bytes to say of it. */
const ENDLESS: readonly [name: string, begin: Buffer, repeated: Buffer][] = [
  ['mlx5', SAMPLES.get('mlx5')!.subarray(0, 24), join(u64(4), u32(0, 0), zeros(4))],
  ['virtio-device-parts', virtioDeviceParts(), join(u16(0x103), u8(0, 0), zeros(8), u32(1), u8(15))],
  ['virtio-vfio', zeros(0), SAMPLES.get('virtio-vfio')!.subarray(0, 323)],
  ['xe', SAMPLES.get('xe')!.subarray(0, 52), join(u8(1, 6, 0, 0), u32(0), u64(0, 8), zeros(8))],
  [
    'nvme-controller-state',
    join(zeros(16), u64(2 + 6 * 131070, 0), zeros(16), u16(0, 65535, 65535, 0)),
    zeros(24),
  ],
  ['spdk-nvme', SAMPLES.get('spdk-nvme')!, Buffer.from([1, 0, 2])],
  ['qat', join(u32(0xadf5caea, 1), u16(16, 65535), u32(0xfffffff0)), join(zeros(8), u32(0, 0))],
];

t.test('without end: what is kept and said is bounded', async (t) => {
  for (const [name, begin, repeated] of ENDLESS) {
    const chunk = Buffer.concat(Array.from({ length: Math.ceil(65536 / repeated.length) }, () => repeated));
    const reader = kindNamed(name).read({ kinds: FOREIGN_KINDS });
    const before = process.memoryUsage().arrayBuffers;
    reader.push(begin);
    let size = begin.length;
    while (size < 8 << 20) {
      reader.push(chunk);
      size += chunk.length;
    }
    const kept = process.memoryUsage().arrayBuffers - before;
    const report = reader.finish();
    t.equal(check(report, size), undefined, name);
    const said = JSON.stringify(report).length;
    t.ok(said < REPORT_LENGTH_MAX, `${name}: ${said} characters are said`);
    t.ok(kept < 4 << 20, `${name}: ${kept} bytes are kept`);
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
