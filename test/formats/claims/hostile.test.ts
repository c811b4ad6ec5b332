// SPDX-License-Identifier: Apache-2.0
/**
 * Inspection of anything at all: it ends, with an answer that can be printed, and takes at most 64 MiB of memory. Inputs
 * begin like every kind of content there is, and claim counts, lengths and depths that nothing has.
 */

import fc from 'fast-check';
import t, { type Test } from 'tap';
import { formatDescriptions } from '../../../src/devices/catalogue.js';
import {
  type ContentReport,
  type ContentSection,
  FOREIGN_KINDS,
  type Inspection,
  inspect,
  NVME_ALDER,
  NVME_BIRCH,
  NVME_CONTROLLER_STATE,
  NVME_STANDARD,
  renderInspection,
  SAMPLE,
  VIRTIO_DEVICE_PARTS,
} from '../../../src/formats/index.js';
import { savedBlob } from '../../operations/files/saved.js';
import { encodeBlob, fixture, MINIMAL_HEADER, type PlainRecord } from '../blobs.js';
import {
  be32,
  dbusVmstate,
  description,
  EOF,
  full,
  HEADER,
  helperState,
  join,
} from '../qemu-stream/streams.js';
import { measured } from './memory.js';

t.setTimeout(300_000);

const MiB = 1024 * 1024;
const MEMORY_MAX = 64 * MiB;
/** No run takes as long, unless it hangs. */
const MS_MAX = 30_000;

const KINDS = [...FOREIGN_KINDS.map(({ name }) => name), 'envelope'];
const SAMPLES = [
  ...['hisi-acc', 'mlx5', 'mtty', 'nvme-controller-state', 'qat', 'qemu-cpr', 'qemu-none'],
  ...['spdk-nvme', 'virtio-device-parts', 'virtio-vfio', 'xe'],
].map((name) => new Uint8Array(fixture(`foreign/${name}.bin`)));

/** What the command does with a file, or with a pipe. */
async function look(
  t: Test,
  pieces: Iterable<Uint8Array>,
  whole?: Uint8Array,
  exact = true,
): Promise<Inspection> {
  const { result, peak, ms } = await measured(async (sample) => {
    const chunks = function* () {
      for (const piece of pieces) {
        yield piece;
        sample();
      }
    };
    const file =
      whole === undefined
        ? undefined
        : { size: whole.length, read: (at: number, length: number) => whole.subarray(at, at + length) };
    const inspection = await inspect(chunks(), { formats: formatDescriptions, kinds: FOREIGN_KINDS, file });
    sample();
    JSON.stringify(inspection);
    sample();
    return { inspection, text: renderInspection(inspection, { fields: true }) };
  }, exact);
  const { inspection, text } = result;
  if (peak > MEMORY_MAX) t.fail(`${(peak / MiB).toFixed(0)} MiB, as ${nameOf(inspection)}`);
  if (ms > MS_MAX) t.fail(`${ms.toFixed(0)} ms`);
  for (const line of text.split('\n')) {
    if ([...line].length > 80 || /\p{C}/u.test(line))
      t.fail(`a line that cannot be shown: ${JSON.stringify(line)}`);
  }
  checkTree(t, text);
  if (inspection.kind === 'content') checkReport(t, inspection.content);
  return inspection;
}

/** After the last branch of a tree there is no other. */
function checkTree(t: Test, text: string): void {
  const ended = new Set<number>();
  for (const line of text.split('\n')) {
    const [, prefix = '', branch] = /^([│ ]*)(├─|└─)?/.exec(line) ?? [];
    for (const depth of [...ended]) if (depth > prefix.length) ended.delete(depth);
    if (branch === undefined) ended.delete(prefix.length);
    else if (ended.has(prefix.length)) t.fail(`a branch behind the last one: ${line}`);
    if (branch === '└─') ended.add(prefix.length);
  }
}

function nameOf(found: Inspection): string {
  return found.kind === 'content' ? found.content.kind : found.kind;
}

/** Sections lie one behind the other, and within what they are in. */
function checkReport(t: Test, { kind, size, sections, error }: ContentReport): void {
  const sum = sections.reduce((total, section) => total + section.size, 0);
  if (sum !== size) t.fail(`${kind}: sections of ${sum} bytes in ${size}, ${error?.code}`);
  for (const section of sections) checkSection(t, section);
}

function checkSection(t: Test, { name, offset, size, sections }: ContentSection): void {
  let at = offset;
  for (const inner of sections) {
    if (inner.offset < at || inner.offset + inner.size > offset + size)
      t.fail(`${inner.name} is not within ${name}`);
    at = inner.offset + inner.size;
    checkSection(t, inner);
  }
}

const header = (format: typeof NVME_ALDER, features: string[] = ['deflate']) => ({
  ...MINIMAL_HEADER,
  format: format.uuid,
  features,
});

/** A blob of opaque records, compressed if asked for. */
function wrapped(bytes: Uint8Array, features: string[] = []): Uint8Array {
  const records: PlainRecord[] = [];
  for (let at = 0; at < bytes.length; at += MiB) {
    records.push({ type: 2, flags: 0, payload: bytes.subarray(at, at + MiB) });
  }
  return encodeBlob(records, header(NVME_ALDER, features));
}

const helpersSection = (entries: readonly Uint8Array[]): Uint8Array =>
  new Uint8Array(
    join(
      HEADER,
      full({ id: 1, name: 'dbus-vmstate/dbus-vmstate' }, dbusVmstate(entries.length, entries)),
      EOF,
    ),
  );

/** The pieces that a file is read in. */
function* pieces(bytes: Uint8Array, size = MiB): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

t.test('every kind has a sample here', async (t) => {
  const found = new Set<string>();
  for (const sample of [...SAMPLES, await savedBlob(t)]) found.add(nameOf(await look(t, [sample], sample)));
  t.same([...found].sort(), [...KINDS].sort());
});

t.test('property: anything, and anything that begins like something', async (t) => {
  const blobs = [
    await savedBlob(t),
    await savedBlob(t, { vendor: 'birch', features: ['deflate'] }),
    await savedBlob(t, { format: 'org.devstate.nvme' }),
    new Uint8Array(fixture('newer-writer.bin')),
  ];
  const extreme = fc.constantFrom(0, 1, 0x7f, 0xff, 0xffff, 0x10000, 0xffffff, 0x7fffffff, 0xffffffff);
  const change = fc.record({
    /** Most of what says how much follows is at the beginning. */
    at: fc.oneof(fc.nat(63), fc.nat(511), fc.nat(20_000)),
    width: fc.constantFrom(1, 2, 4, 8),
    value: fc.oneof(extreme, fc.nat(0xffffffff)),
    bigEndian: fc.boolean(),
  });
  const sound = fc.constantFrom(...SAMPLES, ...blobs);
  const mutated = fc
    .record({
      sound,
      changes: fc.array(change, { minLength: 1, maxLength: 6 }),
      keep: fc.double({ min: 0, max: 1, noNaN: true }),
      cut: fc.boolean(),
      more: fc.uint8Array({ maxLength: 64 }),
    })
    .map(({ sound, changes, keep, cut, more }) => {
      const bytes = Buffer.from(sound);
      for (const { at, width, value, bigEndian } of changes) {
        for (let i = 0; i < width; i++) {
          const place = at + (bigEndian ? width - 1 - i : i);
          if (place < bytes.length) bytes[place] = i < 4 ? (value >>> (8 * i)) & 0xff : 0;
        }
      }
      const length = cut ? Math.floor(keep * bytes.length) : bytes.length;
      return new Uint8Array(Buffer.concat([bytes.subarray(0, length), more]));
    });
  const plain = fc.oneof(
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 2000, size: 'max' }) },
    { weight: 1, arbitrary: sound },
    { weight: 6, arbitrary: mutated },
  );
  const nested = plain.chain((bytes) =>
    fc.constantFrom(
      ...Array.from({ length: 6 }, () => bytes),
      wrapped(bytes),
      wrapped(bytes, ['deflate']),
      wrapped(wrapped(bytes)),
      helpersSection([helperState('a', bytes), helperState('../../b\u001b[2J', bytes)]),
      wrapped(helpersSection([helperState('disk', wrapped(bytes))])),
      encodeBlob([{ type: 0x10000, flags: 1, payload: bytes }], header(NVME_STANDARD)),
    ),
  );
  const seen = new Map<string, number>();
  const property = fc.asyncProperty(
    nested,
    fc.constantFrom(7, 512, 4096),
    fc.boolean(),
    async (bytes, size, isFile) => {
      const found = await look(t, pieces(bytes, size), isFile ? bytes : undefined, false);
      seen.set(nameOf(found), (seen.get(nameOf(found)) ?? 0) + 1);
      return found.size === bytes.length;
    },
  );
  await fc.assert(property, { numRuns: 800 });
  t.comment(JSON.stringify(Object.fromEntries(seen)));
  for (const kind of [...KINDS, 'unknown']) t.ok((seen.get(kind) ?? 0) > 0, `${kind}: ${seen.get(kind)}`);
});

t.test('property: a length or count that nothing has, and very much behind it', async (t) => {
  const filler = Buffer.alloc(MiB);
  const property = fc.asyncProperty(
    fc.constantFrom(...SAMPLES),
    fc.nat(159),
    fc.constantFrom([0xff, 0xff, 0xff, 0x7f], [0, 0, 0, 0xff], [0xff, 0xff, 0xff], [0, 0, 0x10]),
    fc.constantFrom(0xff, 0xa5),
    async (sample, at, value, fill) => {
      const bytes = Buffer.from(sample);
      bytes.set(value.slice(0, Math.max(0, bytes.length - at)), Math.min(at, bytes.length));
      filler.fill(fill);
      const all = function* () {
        yield bytes;
        for (let i = 0; i < 72; i++) yield filler;
      };
      const found = await look(t, all());
      return found.size === bytes.length + 72 * MiB;
    },
  );
  await fc.assert(property, { numRuns: 40 });
  t.pass();
});

const repeated = (length: number, ...unit: number[]) => Buffer.alloc(length).fill(Buffer.from(unit));
const records = (count: number) =>
  Array.from({ length: count }, (_, index) => ({
    type: 0x10000 + index,
    flags: 1,
    payload: new Uint8Array(0),
  }));
/** Records of mlx5, without data, as many as fit. */
const tinyRecords = (length: number) =>
  Buffer.concat([
    Buffer.from('08000000000000000100000001000000ffffffffffffffff', 'hex'),
    repeated(length, ...new Array(12).fill(0), 9, 0, 0, 0),
  ]);
const array32 = (items: number) => Buffer.concat([Buffer.of(0xdd), be32(items), Buffer.alloc(items)]);

const BOMBS: Record<string, () => Uint8Array> = {
  'messages in messages, two bytes each': () =>
    encodeBlob(
      [0x10000, 0x10003, 0x10006].map((type) => ({
        type,
        flags: 0,
        payload: repeated(MiB, type === 0x10000 ? 0x4a : 0x0a, 0),
      })),
      header(NVME_STANDARD),
    ),
  'the same, as much as is looked at': () =>
    encodeBlob(
      Array.from({ length: 40 }, () => ({ type: 0x10003, flags: 0, payload: repeated(28_000, 0x0a, 0) })),
      header(NVME_STANDARD),
    ),
  'unknown fields without number': () =>
    encodeBlob(
      [{ type: 0x10006, flags: 0, payload: repeated(250_000, 0xf8, 0x01, 0) }],
      header(NVME_STANDARD),
    ),
  ...Object.fromEntries(
    [NVME_ALDER, NVME_BIRCH, NVME_STANDARD, NVME_CONTROLLER_STATE, VIRTIO_DEVICE_PARTS, SAMPLE].flatMap(
      (format) =>
        [0x10000, 0x10002].map((type) => [
          `16 MiB of zeros, and an array as long, as record ${type.toString(16)} of ${format.name}`,
          () =>
            encodeBlob(
              [
                array32(16 * MiB - 5),
                new Uint8Array(16 * MiB),
                array32(200_000),
                new Uint8Array(200_000),
              ].map((payload) => ({ type, flags: 0, payload })),
              header(format),
            ),
        ]),
    ),
  ),
  '192 MiB in 200 KiB': () =>
    encodeBlob(
      Array.from({ length: 12 }, () => ({ type: 0x10001, flags: 0, payload: new Uint8Array(16 * MiB) })),
      header(NVME_ALDER),
    ),
  'the same, opaque': () =>
    encodeBlob(
      Array.from({ length: 12 }, () => ({ type: 2, flags: 0, payload: new Uint8Array(16 * MiB) })),
      header(NVME_ALDER),
    ),
  '200,000 records': () => encodeBlob(records(200_000)),
  '16 MiB of tiny records': () => tinyRecords(16 * MiB),
  'blobs in a migration stream': () => {
    const blob = encodeBlob(records(10_000));
    return helpersSection(Array.from({ length: 40 }, (_, index) => helperState(`h${index}`, blob)));
  },
  'the same, opaque in a blob, compressed': () =>
    wrapped(
      helpersSection(
        Array.from({ length: 300 }, (_, index) => helperState(`h${index}`, tinyRecords(30_000))),
      ),
      ['deflate'],
    ),
  'opaque streams, twelve deep': () => {
    let bytes: Uint8Array = tinyRecords(MiB);
    for (let depth = 0; depth < 12; depth++) {
      bytes = depth % 3 === 2 ? helpersSection([helperState('h', bytes)]) : wrapped(bytes, ['deflate']);
    }
    return bytes;
  },
  'a description of a VM, eight million deep': () =>
    join(HEADER, full({ id: 1, name: 'x' }), EOF, description('['.repeat(8 * MiB))),
  'a description of four million devices': () =>
    join(
      HEADER,
      full({ id: 1, name: 'x' }),
      EOF,
      description(`{"page_size":4096,"devices":[${'{},'.repeat(4 * MiB)}{}]}`),
    ),
};

t.test('bombs', async (t) => {
  for (const [name, make] of Object.entries(BOMBS)) {
    const bytes = make();
    const found = await look(t, pieces(bytes), bytes);
    t.equal(found.size, bytes.length, name);
    t.not(found.kind, 'unknown', name);
  }
});
