// SPDX-License-Identifier: Apache-2.0
/** Migration streams, built by hand from the bytes that QEMU's source says they are made of. */
import type { ContentFile } from '../../../src/formats/index.js';

export const u8 = (value: number) => Buffer.of(value);
export const be16 = (value: number) => Buffer.of(value >> 8, value & 0xff);
export function be32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}
export function be64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt.asUintN(64, BigInt(value)));
  return bytes;
}
/** A text behind its length. */
export const counted = (text: string) => Buffer.concat([u8(text.length), Buffer.from(text)]);
export const join = (...parts: readonly (Uint8Array | string)[]) =>
  Buffer.concat(parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : part)));

export const HEADER = join('QEVM', be32(3));
export const EOF = u8(0);
export const footer = (id: number) => join(u8(0x7e), be32(id));
export const subsection = (name: string, version: number, data: Uint8Array) =>
  join(u8(5), counted(name), be32(version), data);
export const configuration = (machine: string, ...subsections: Uint8Array[]) =>
  join(u8(7), be32(machine.length), machine, ...subsections);
export const capabilities = (...names: string[]) =>
  subsection('configuration/capabilities', 1, join(be32(names.length), ...names.map(counted)));
export const command = (number: number, payload: Uint8Array = Buffer.alloc(0)) =>
  join(u8(8), be16(number), be16(payload.length), payload);

export interface Introduced {
  readonly id: number;
  readonly name: string;
  readonly instance?: number;
  readonly version?: number;
}
const introduction = (type: number, { id, name, instance = 0, version = 1 }: Introduced) =>
  join(u8(type), be32(id), counted(name), be32(instance), be32(version));
export const start = (what: Introduced, ...data: Uint8Array[]) =>
  join(introduction(1, what), ...data, footer(what.id));
export const part = (id: number, ...data: Uint8Array[]) => join(u8(2), be32(id), ...data, footer(id));
export const end = (id: number, ...data: Uint8Array[]) => join(u8(3), be32(id), ...data, footer(id));
export const full = (what: Introduced, ...data: Uint8Array[]) =>
  join(introduction(4, what), ...data, footer(what.id));

export const description = (json: object | string) => {
  const text = typeof json === 'string' ? json : JSON.stringify(json);
  return join(u8(6), be32(Buffer.byteLength(text)), text);
};

export const PAGE = 4096;
/** RAM_SAVE_FLAG_… */
export const RAM = {
  ZERO: 2,
  MEM_SIZE: 4,
  PAGE: 8,
  EOS: 16,
  CONTINUE: 32,
  XBZRLE: 64,
  HOOK: 128,
  COMPRESS: 256,
  FLUSH: 512,
};
export const RAM_EOS = be64(RAM.EOS);
export const blocks = (...list: [name: string, length: number, more?: Uint8Array][]) =>
  join(
    be64(list.reduce((sum, [, length]) => sum + length, 0) + RAM.MEM_SIZE),
    ...list.map(([name, length, more = Buffer.alloc(0)]) => join(counted(name), be64(length), more)),
  );

/** VFIO_MIG_FLAG_… */
export const vfioTag = (number: number) => be64(0xffffffffef100000n + BigInt(number));
export const VFIO = {
  END: vfioTag(1),
  CONFIG: vfioTag(2),
  SETUP: vfioTag(3),
  INIT_SENT: vfioTag(5),
  READY: vfioTag(6),
};
export const vfioData = (data: Uint8Array) => join(vfioTag(4), be64(data.length), data);

export const helperState = (id: string, data: Uint8Array) =>
  join(be32(id.length), id, be32(data.length), data);
/** The data of a dbus-vmstate section. */
export const dbusVmstate = (count: number, entries: readonly Uint8Array[], padding = 0) => {
  const all = join(be32(count), ...entries, Buffer.alloc(padding));
  return join(be32(all.length), all);
};

/** A stream in memory as a file. */
export const inMemory = (bytes: Uint8Array): ContentFile => ({
  size: bytes.length,
  read: (offset, length) => bytes.subarray(offset, offset + length),
});

/** The description of a device whose fields are `[name, type, size]`, with whatever more there is. */
export const field = (name: string, type: string, size: number, more: object = {}) => ({
  name,
  type,
  size,
  ...more,
});
export const device = (name: string, fields: readonly object[], more: object = {}) => ({
  name,
  instance_id: 0,
  vmsd_name: name,
  version: 1,
  fields,
  ...more,
});
export const machine = (...devices: readonly object[]) => ({ page_size: PAGE, devices });

const DISK_FIELDS = [
  field('flag', 'bool', 1),
  field('small', 'int8', 1),
  field('port', 'uint16 equal', 2),
  field('version_id', 'int32 le', 4),
  field('big', 'uint64', 8),
  field('offset', 'int64', 8),
  field('deadline', 'timer', 8),
  field('idle', 'timer', 8),
  field('gone', 'nullptr', 1),
  field('text', 'buffer', 4),
  field('gap', 'unused_buffer', 3),
  field('bytes', 'uint8', 1, { array_len: 5 }),
  field('words', 'uint16', 2, { array_len: 40 }),
  field('queue', 'struct', 3, {
    array_len: 2,
    struct: {
      vmsd_name: 'queue',
      version: 1,
      fields: [field('head', 'uint8', 1), field('tail', 'uint16', 2)],
    },
  }),
  field('slot', 'uint32', 4, { index: 0 }),
  field('slot', 'nullptr', 1, { index: 1 }),
  field('slot', 'uint32', 4, { array_len: 2 }),
  field('inner', 'struct', 8, {
    struct: {
      vmsd_name: 'inner',
      version: 1,
      fields: [field('x', 'uint8', 1)],
      subsections: [{ vmsd_name: 'i', version: 1, fields: [] }],
    },
  }),
  field('in place', 'tmp', 2, { vmsd_name: 't', version: 0, fields: [field('y', 'uint16', 2)] }),
  // A list describes one element, and has marks between them.
  field('list', 'qtailq', 6, { vmsd_name: 'l', version: 0, fields: [field('z', 'uint16', 2)] }),
];
const DISK_DATA = join(
  u8(1),
  u8(0xfe),
  be16(8080),
  be32(2),
  be64(2n ** 63n),
  be64(-7),
  be64(1234),
  be64(-1),
  '0',
  'text',
  Buffer.alloc(3),
  Buffer.of(1, 2, 3, 4, 5),
  Buffer.concat(Array.from({ length: 40 }, (_, index) => be16(index))),
  join(u8(1), be16(2), u8(3), be16(4)),
  be32(77),
  '0',
  be32(78),
  be32(79),
  join(u8(9), u8(5), counted('i'), be32(1)),
  be16(0x1234),
  Buffer.of(1, 0, 5, 1, 0, 6),
);
/** What is to be read from {@link DISK_DATA}. */
export const DISK_STATE = {
  flag: true,
  small: -2,
  port: 8080,
  version_id: 2,
  big: '0x8000000000000000',
  offset: -7,
  deadline: 1234,
  idle: null,
  gone: null,
  text: '74657874',
  bytes: '0102030405',
  words: [...Array(32).keys(), '… 8 more'],
  queue: [
    { head: 1, tail: 2 },
    { head: 3, tail: 4 },
  ],
  slot: [77, null, 78, 79],
  inner: { x: 9, i: {} },
  'in place': { y: 0x1234 },
  list: { type: 'qtailq', size: 6, bytes: '010005010006' },
};

export const HELPER_STATE = join('MARK', Buffer.alloc(60, 'state of a helper'));
/** In two pieces. */
export const DEVICE_STATE = join('MARK', Buffer.alloc(2000, 'state of a device'));

const CPU = device('cpu', [field('pc', 'uint64', 8)], { instance_id: 3 });
const DISK = device('0000:00:05.0/disk', DISK_FIELDS, {
  subsections: [
    {
      vmsd_name: 'disk/more',
      version: 2,
      fields: [field('a', 'uint8', 1)],
      subsections: [{ vmsd_name: 'disk/more/yet', version: 3, fields: [field('b', 'uint8', 1)] }],
    },
  ],
});
const SLIRP = { name: 'slirp', instance_id: 0, size: 4, fields: [field('data', 'buffer', 4)] };
const PCI_STATE = Buffer.alloc(300, 'pci');
const VFIO_DEVICE = {
  name: '0000:00:06.0/vfio',
  instance_id: 0,
  size: 316,
  fields: [field('data', 'buffer', 316)],
};
const HELPERS_DATA = dbusVmstate(
  3,
  [helperState('Disk 0', HELPER_STATE), helperState('other', Buffer.from('?'))],
  77,
);
const HELPERS = device('dbus-vmstate/dbus-vmstate', [field('data', 'buffer', HELPERS_DATA.length)]);
export const DESCRIPTION = machine(CPU, DISK, SLIRP, VFIO_DEVICE, HELPERS);

/** One of everything, in order: what the report has to call it, and its bytes. */
export const ELEMENTS: readonly (readonly [name: string, bytes: Buffer])[] = [
  ['header', HEADER],
  [
    'configuration',
    configuration(
      'pc-q35-11.1',
      subsection('configuration/target-page-bits', 1, be32(12)),
      capabilities('auto-converge', 'xbzrle'),
      subsection('configuration/uuid', 1, Buffer.from('00112233445566778899aabbccddeeff', 'hex')),
    ),
  ],
  ['cpu', full({ id: 9, name: 'cpu', instance: 3, version: 12 }, be64(0x1000))],
  ['ram', start({ id: 2, name: 'ram', version: 4 }, blocks(['pc.ram', 1 << 20], ['pc.rom', 8192]), RAM_EOS)],
  [
    'dirty-bitmap',
    start(
      { id: 3, name: 'dirty-bitmap' },
      u8(0x1c),
      counted('node'),
      counted('map'),
      be32(65536),
      u8(1),
      u8(1),
    ),
  ],
  ['spapr/htab', start({ id: 4, name: 'spapr/htab' }, be32(24))],
  ['0000:00:06.0/vfio', start({ id: 5, name: '0000:00:06.0/vfio' }, VFIO.SETUP, VFIO.END)],
  ['command', command(1)],
  ['command', command(2, be32(1))],
  [
    'ram',
    part(
      2,
      join(be64(0 + RAM.PAGE), counted('pc.ram'), Buffer.alloc(PAGE, 0x7e)),
      join(be64(PAGE + RAM.PAGE + RAM.CONTINUE), Buffer.alloc(PAGE, footer(2))),
      join(be64(2 * PAGE + RAM.ZERO + RAM.CONTINUE), u8(0)),
      join(be64(RAM.ZERO), counted('pc.rom'), u8(0)),
      be64(RAM.FLUSH),
      RAM_EOS,
    ),
  ],
  [
    'dirty-bitmap',
    part(3, u8(0x40), be64(0), be32(8), be64(16), Buffer.alloc(16, 1), u8(0x43), be64(8), be32(8)),
  ],
  ['spapr/htab', part(4, Buffer.alloc(100, 4), footer(4), footer(99), u8(0x7e))],
  ['0000:00:06.0/vfio', part(5, vfioData(DEVICE_STATE.subarray(0, 1000)), VFIO.INIT_SENT)],
  [
    'ram',
    part(
      2,
      join(be64(RAM.XBZRLE), counted('pc.ram'), u8(1), be16(20), Buffer.alloc(20)),
      join(be64(PAGE + RAM.COMPRESS + RAM.CONTINUE), be32(33), Buffer.alloc(33)),
      RAM_EOS,
    ),
  ],
  ['command', command(11)],
  ['ram', end(2, RAM_EOS)],
  ['dirty-bitmap', end(3, Buffer.of(0x80, 0x20), Buffer.of(0x80, 0x80, 0, 1))],
  ['spapr/htab', end(4)],
  ['0000:00:06.0/vfio', end(5, vfioData(DEVICE_STATE.subarray(1000)), VFIO.END)],
  [
    '0000:00:05.0/disk',
    full(
      { id: 10, name: '0000:00:05.0/disk' },
      DISK_DATA,
      subsection('disk/more', 2, u8(0xa)),
      subsection('disk/more/yet', 3, u8(0xb)),
    ),
  ],
  ['slirp', full({ id: 11, name: 'slirp', version: 4 }, be32(0xdeadbeef))],
  ['0000:00:06.0/vfio', full({ id: 5, name: '0000:00:06.0/vfio' }, VFIO.CONFIG, PCI_STATE, VFIO.END)],
  [
    'dbus-vmstate/dbus-vmstate',
    full({ id: 12, name: 'dbus-vmstate/dbus-vmstate', version: 0 }, HELPERS_DATA),
  ],
  ['end of stream', EOF],
  ['vmdescription', description(DESCRIPTION)],
];
export const STREAM = join(...ELEMENTS.map(([, bytes]) => bytes));
