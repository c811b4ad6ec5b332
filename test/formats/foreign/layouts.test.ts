// SPDX-License-Identifier: Apache-2.0
/** Byte tables: what each field of a layout is, one at a time; versions and variants that the samples do not have. */
import t from 'tap';
import { FOREIGN_KINDS } from '../../../src/formats/foreign/index.js';
import type { ContentSection, FieldValue } from '../../../src/formats/index.js';
import { allSections } from '../qemu-stream/reading.js';
import { readWith } from './reading.js';
import {
  hisiAcc,
  join,
  mtty,
  noise,
  placed,
  qat,
  SAMPLES,
  text,
  u8,
  u16,
  u32,
  u64,
  zeros,
} from './samples.js';

function read(name: string, bytes: Uint8Array) {
  return readWith(FOREIGN_KINDS.find((kind) => kind.name === name)!, bytes);
}

function sectionNamed(sections: readonly ContentSection[], name: string): ContentSection {
  for (const section of allSections(sections)) if (section.name === name) return section;
  throw new Error(`no section ${name}`);
}

/** The field at a path, `registers.cap`. */
const fieldAt = (section: ContentSection, path: string): FieldValue | undefined =>
  path
    .split('.')
    .reduce<FieldValue | undefined>(
      (value, step) => (value as { [name: string]: FieldValue } | undefined)?.[step],
      section.fields,
    );

/** Kind, section, offset in the sample, bytes put there, path of the field, value. */
const BYTES: readonly [
  kind: string,
  section: string,
  offset: number,
  bytes: Buffer,
  path: string,
  value: FieldValue,
][] = [
  ['mtty', 'header', 12, u32(7), 'minor', 7],
  ['mtty', 'header', 20, u32(9), 'flags', 9],
  ['mtty', 'port 0', 24 + 7, u8(0x77), 'registers', [1, 5, 1, 3, 11, 96, 176, 0x77]],
  ['mtty', 'port 0', 24 + 24, u8(9), 'fifoHead', 9],
  ['mtty', 'port 0', 24 + 25, u8(9), 'fifoTail', 9],
  ['mtty', 'port 0', 24 + 26, u8(9), 'fifoCount', 9],
  ['mtty', 'port 0', 24 + 27, u8(1), 'dlab', 1],
  ['mtty', 'port 0', 24 + 28, u8(9), 'overrun', 9],
  ['mtty', 'port 0', 24 + 30, u16(0x1234), 'divisor', 0x1234],
  ['mtty', 'port 0', 24 + 34, u8(9), 'interruptTriggerLevel', 9],
  ['mtty', 'port 1', 24 + 36 + 32, u8(9), 'fifoControl', 9],
  ['hisi-acc', 'match', 8, u32(9), 'queuePairs', 9],
  ['hisi-acc', 'match', 24, u32(9), 'queueManagerState', 9],
  ['hisi-acc', 'match', 30, u16(9), 'minor', 9],
  ['hisi-acc', 'registers', 60, u32(9), 'pageSize', 9],
  ['hisi-acc', 'registers', 64, u32(9), 'eventQueueContext', [9, 2, 3, 4, 5, 6, 7]],
  ['hisi-acc', 'registers', 116, u32(9), 'asyncEventQueueContext', [11, 12, 13, 14, 15, 16, 9]],
  ['hisi-acc', 'dma addresses', 152, u64(0xffffffffffff0000n), 'aeqe', '0xffffffffffff0000'],
  ['hisi-acc', 'dma addresses', 168, u64(9), 'cqc', 9],
  ['spdk-nvme', 'header', 8, u32(9), 'optsSize', 9],
  ['spdk-nvme', 'header', 192, u32(9), 'ioQueues', 9],
  ['spdk-nvme', 'header', 232, u64(2 ** 52), 'eventIndexBuffer', 2 ** 52],
  ['spdk-nvme', 'controller', 4096 + 16 + 12, u32(9), 'registers.cc', 9],
  ['spdk-nvme', 'controller', 4096 + 16 + 24, u64(2n ** 63n), 'registers.asq', '0x8000000000000000'],
  ['spdk-nvme', 'controller', 4096 + 272 + 36, u32(9), 'features.keepAliveTimer', 9],
  ['spdk-nvme', 'controller', 4096 + 528, u16(9), 'controllerId', 9],
  ['spdk-nvme', 'controller', 4096 + 530, u8(9), 'advancedCommandRetry', 9],
  ['spdk-nvme', 'controller', 4096 + 536, u32(9), 'asyncEvents', [9]],
  ['spdk-nvme', 'controller', 4096 + 1562, u16(9), 'asyncEventRequests', [12, 9]],
  ['spdk-nvme', 'controller', 4096 + 1568, u64(9), 'noticeMask', 9],
  ['spdk-nvme', 'queue pair 3', 8192 + 3 * 56 + 16, u64(9), 'submissionQueue.address', 9],
  ['spdk-nvme', 'queue pair 3', 8192 + 3 * 56 + 26, u16(9), 'completionQueue.phase', 9],
  ['spdk-nvme', 'queue pair 3', 8192 + 3 * 56 + 36, u32(9), 'completionQueue.vector', 9],
  ['spdk-nvme', 'doorbells', 8416 + 8, u32(9), 'submissionTails', [3, 9, 0, 30]],
  ['xe', 'VRAM', 136 + 2, u8(9), 'tile', 9],
  ['xe', 'VRAM', 136 + 4, u32(9), 'flags', 9],
  ['xe', 'DESCRIPTOR', 24 + 4, u32(9), 'deviceId', 9],
  ['virtio-device-parts', 'DEVICE_STATUS', 100 + 16, u8(9), 'status', 9],
  ['virtio-device-parts', 'VQ_CFG', 117 + 16 + 2, u16(9), 'vector', 9],
  ['nvme-controller-state', 'completion queue', 104 + 18, u16(9), 'vector', 9],
  ['qat', 'svcmap', 52 + 16, u16(9), 'value', 9],
  ['qat', 'compver', 139 + 16, u8(9), 'value', 9],
];

t.test('a field is where its structure has it', async (t) => {
  for (const [kind, name, offset, bytes, path, value] of BYTES) {
    const changed = Buffer.from(SAMPLES.get(kind)!);
    changed.set(bytes, offset);
    t.same(fieldAt(sectionNamed(read(kind, changed).sections, name), path), value, `${kind} ${name} ${path}`);
  }
});

t.test('mtty: ports and versions', async (t) => {
  t.equal(read('mtty', mtty(1)).error, null);
  t.equal(read('mtty', mtty(1)).sections.length, 2);
  t.equal(read('mtty', mtty(0)).sections.length, 1);
  const three = Buffer.from(mtty());
  three.set(u32(3), 16);
  t.match(read('mtty', three).error, { code: 'DEVSTATE_E_CONTENT_DAMAGED', message: '3 ports' });
  const newer = Buffer.from(mtty());
  newer.set(u32(2), 8);
  t.match(read('mtty', newer).error, { code: 'DEVSTATE_E_CONTENT_UNSUPPORTED', message: 'version 2' });
});

t.test('hisi-acc: the older magic number, and a device that was not set up', async (t) => {
  const older = read('hisi-acc', hisiAcc(1));
  t.same([older.fields, older.error], [{ version: 1 }, null]);
  t.equal(older.sections[0]?.fields.major, undefined);
  const idle = read('hisi-acc', hisiAcc().subarray(0, 40));
  t.same([idle.sections.length, idle.error], [1, null]);
});

t.test('qat: only the setup; sections in sections in sections', async (t) => {
  t.same(read('qat', qat().subarray(0, 90)).error, null);
  let nested = join(text('bnk0', 8), u32(3, 0), noise(3));
  for (let depth = 0; depth < 20; depth++) nested = join(text('ETRBAR', 8), u32(nested.length, 1), nested);
  const deep = read('qat', join(u32(0xadf5caea, 1), u16(16, 1), u32(nested.length), nested));
  t.equal(deep.error, null);
  t.ok([...allSections(deep.sections)].length < 12, 'those at the bottom are bytes');
  const tooMany = Buffer.from(qat());
  tooMany.set(u16(2), 10);
  t.match(read('qat', tooMany).error, { code: 'DEVSTATE_E_CONTENT_DAMAGED', offset: 90 });
  const tooLong = Buffer.from(qat());
  tooLong.set(u32(21), 16 + 16 + 8);
  t.match(read('qat', tooLong).error, { code: 'DEVSTATE_E_CONTENT_DAMAGED' });
  const longer = join(u32(0xadf5caea, 1), u16(20, 0), u32(6), zeros(4), noise(6));
  t.match(read('qat', longer), {
    error: null,
    sections: [{ sections: [{ name: 'preamble' }, { name: null, size: 4 }, { name: null, size: 6 }] }],
  });
});

t.test('spdk: the layout before 22.09, and regions that cannot be', async (t) => {
  const sample = SAMPLES.get('spdk-nvme')!;
  const older = placed(sample.length, { 0: sample.subarray(0, 200), 206: u16(4), 720: u64(4096, 4096) });
  t.match(read('spdk-nvme', older), {
    fields: { layout: null },
    error: { code: 'DEVSTATE_E_CONTENT_UNSUPPORTED', offset: 4096 },
    sections: [{ name: 'header', fields: { version: 0 } }, { name: null }],
  });
  for (const [offset, bytes] of [
    [176, u64(4097)],
    [16, u64(2n ** 63n)],
    [96, u64(2n ** 63n)],
    [184, u64(2 ** 53 - 1)],
  ] as const) {
    const wrong = Buffer.from(sample);
    wrong.set(bytes, offset);
    t.match(read('spdk-nvme', wrong).error, { code: /DAMAGED|TRUNCATED/ }, `${offset}`);
  }
  const other = Buffer.from(sample);
  other.set(join(u64(16608), zeros(0)), 16 + 8 * 2);
  other.set(u64(100), 96 + 8 * 2);
  t.match(read('spdk-nvme', other).sections.at(-1), { name: 'region 2', offset: 16608, size: 100 });
  const odd = Buffer.from(sample);
  odd.set(u64(4000), 208);
  t.match(read('spdk-nvme', odd).sections, [
    {},
    { name: 'controller', size: 4000, fields: {} },
    { name: null, size: 96 },
  ]);
});

t.test('records: sizes and tags that are not known', async (t) => {
  const huge = read('mlx5', join(u64(2 ** 32), u32(0, 0), zeros(10)));
  t.match(huge, {
    error: { code: 'DEVSTATE_E_CONTENT_DAMAGED', offset: 0 },
    sections: [{ name: null, size: 26 }],
  });
  const odd = read('mlx5', join(u64(9), u32(5, 1), noise(9)));
  t.match(odd, { error: null, sections: [{ name: 'STOP_COPY_SIZE', first: '01080f161d242b3239' }] });
  t.same(odd.sections[0]?.fields, { tag: 1, optional: true, unknownFlags: 4, length: 9 });
});

t.test('nvme: without a state, of another version, with sizes that contradict each other', async (t) => {
  const header = (nvme: number, vendor: number, version = 0) =>
    join(u16(version), u8(0), zeros(13), u64(nvme, 0, vendor, 0));
  t.match(read('nvme-controller-state', join(header(0, 1), noise(4))), {
    error: null,
    sections: [{ name: 'header' }, { name: 'vendor specific', size: 4 }],
  });
  const kinds: [Buffer, string][] = [
    [header(0, 0, 3), 'DEVSTATE_E_CONTENT_UNSUPPORTED'],
    [join(header(1, 0), zeros(8)), 'DEVSTATE_E_CONTENT_DAMAGED'],
    [join(header(3, 0), zeros(12)), 'DEVSTATE_E_CONTENT_DAMAGED'],
    [join(header(2, 0), u16(7, 0, 0, 0)), 'DEVSTATE_E_CONTENT_UNSUPPORTED'],
    [join(header(8, 0), u16(0, 1, 0, 0), noise(24)), 'DEVSTATE_E_CONTENT_DAMAGED'],
  ];
  for (const [bytes, code] of kinds) t.equal(read('nvme-controller-state', bytes).error?.code, code);
});
