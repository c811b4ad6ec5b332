// SPDX-License-Identifier: Apache-2.0
/** A sample of each kind of content, put together from the layouts that its module documents. */

import { cprState, DEVICES, ENTRIES } from '../qemu-cpr/states.js';

/** Bytes from pieces, one after the other. */
export const join = (...pieces: Uint8Array[]): Buffer => Buffer.concat(pieces);
export const zeros = (length: number): Buffer => Buffer.alloc(length);
export const u8 = (...values: number[]): Buffer => Buffer.from(values);
export const u16 = (...values: number[]): Buffer => integers(2, values);
export const u32 = (...values: number[]): Buffer => integers(4, values);
export const u64 = (...values: (number | bigint)[]): Buffer => integers(8, values);
/** Text padded with zeros. */
export const text = (value: string, length: number): Buffer =>
  join(Buffer.from(value), zeros(length - value.length));
/** `length` bytes that are not alike. */
export const noise = (length: number, start = 1): Buffer =>
  Buffer.from(Uint8Array.from({ length }, (_, index) => (start + 7 * index) & 0xff));

function integers(width: number, values: (number | bigint)[]): Buffer {
  const bytes = Buffer.alloc(width * values.length);
  for (const [index, value] of values.entries()) {
    for (let byte = 0; byte < width; byte++) {
      bytes[index * width + byte] = Number((BigInt(value) >> BigInt(8 * byte)) & 0xffn);
    }
  }
  return bytes;
}

/** The beginning of `bytes` with pieces put in at offsets. */
export function placed(length: number, pieces: Readonly<Record<number, Uint8Array>>): Buffer {
  const bytes = zeros(length);
  for (const [offset, piece] of Object.entries(pieces)) bytes.set(piece, Number(offset));
  return bytes;
}

export function mtty(ports = 2): Buffer {
  const port = (base: number) =>
    join(
      u8(base, 5, 1, 3, 11, 0x60, 0xb0, 0x55),
      noise(16, base),
      u8(4, 2, 2, 0, 1, 0),
      u16(0x0180),
      u8(0xc1, 16, 14, 0),
    );
  const all = [port(1), port(2)].slice(0, ports);
  return join(u64(0x7e9d09898c3e2c4en), u32(1, 0, ports, 0), ...all);
}

export function hisiAcc(version: 1 | 2 = 2): Buffer {
  const match = join(
    u64(version === 2 ? 0xaaccfeeddecadeden : 0xcdcdcdcdfeedaaccn),
    u32(16, 0xa256, 0x33, 128, 1),
    version === 2 ? u16(1, 0) : u32(0),
    zeros(8),
  );
  const registers = join(
    u32(1, 0, 0x10, 0xff, 0, 4096),
    u32(1, 2, 3, 4, 5, 6, 7),
    u32(11, 12, 13, 14, 15, 16, 17),
    zeros(24),
  );
  return join(match, registers, u64(0x1000, 0x2000, 0x3000, 0x4000));
}

const qatSection = (id: string, subsections: number, ...data: Uint8Array[]): Buffer => {
  const whole = join(...data);
  return join(text(id, 8), u32(whole.length, subsections), whole);
};

export function qat(): Buffer {
  const block = (sections: number, ...data: Uint8Array[]) => {
    const whole = join(...data);
    return join(u32(0xadf5caea, 1), u16(16, sections), u32(whole.length), whole);
  };
  const setup = qatSection(
    'CONFIG',
    3,
    qatSection('gencap', 0, u32(0x14077e0f)),
    qatSection('svcmap', 0, u16(0x0249)),
    qatSection('extdc', 0, u32(0x101)),
  );
  const generic = qatSection(
    'GENER',
    3,
    qatSection('iovinit', 0, u8(1)),
    qatSection('compver', 0, u8(3)),
    qatSection('sla', 0, join(u32(2, 0), u64(0xf0), u32(100, 200))),
  );
  const misc = qatSection(
    'MISCBAR',
    2,
    qatSection('visrc', 0, u32(0)),
    qatSection('vimsk', 0, u32(0xfffffffe)),
  );
  const banks = qatSection(
    'ETRBAR',
    2,
    qatSection('bnk0', 1, qatSection('mregs', 0, noise(40))),
    qatSection('bnk1', 1, qatSection('mregs', 0, noise(40, 9))),
  );
  const later = qatSection('later', 0, noise(20));
  return join(block(1, setup), block(4, generic, misc, banks, later), noise(50));
}

export function mlx5(): Buffer {
  const record = (flags: number, tag: number, data: Uint8Array) =>
    join(u64(data.length), u32(flags, tag), data);
  return join(
    record(1, 1, u64(4096)),
    record(0, 0, noise(100)),
    record(1, 7, noise(5)),
    record(0, 0, noise(3, 200)),
  );
}

/** A device part: `selector` is its first bytes. */
export const part = (type: number, flags: number, selector: Uint8Array, value: Uint8Array): Buffer =>
  join(u16(type), u8(flags, 0), selector, zeros(8 - selector.length), u32(value.length), value);

export function virtioDeviceParts(): Buffer {
  const queue = (index: number, base: number) =>
    part(0x104, 0, u16(index), join(u16(256, index + 1, 1, 0), u64(base, base + 0x1000, base + 0x2000)));
  return join(
    part(0x100, 1, u8(), u64(0x0000010130bf8024n, 0x3n)),
    part(0x101, 0, u8(), u64(0x0000000130bf8024n, 0n)),
    part(0x102, 0, u32(16), u16(0)),
    part(0x102, 0, u32(18), u16(3)),
    part(0x103, 0, u8(), u8(0x0f)),
    queue(0, 0x7f000000),
    queue(1, 0x7f010000),
    part(0x105, 0, u16(0), join(u16(0, 7), zeros(4))),
    part(0x105, 0, u16(1), join(u16(1, 8), zeros(4))),
    part(0x200, 1, u8(1, 2), noise(30)),
  );
}

export function virtioVfio(): Buffer {
  const parts = virtioDeviceParts();
  return join(u64(parts.length), u32(0, 0), parts, u64(4), u32(1, 9), noise(4));
}

export function xe(): Buffer {
  const packet = (type: number, offset: number, data: Uint8Array, gt = 0) =>
    join(u8(1, type, 0, gt), u32(0), u64(offset, data.length), data);
  const descriptor = join(u32(0xf0010001, 0xe20b), u32(0xf0020001, 4), u32(0xf0090002, 1, 2));
  return join(
    packet(1, 0, descriptor),
    packet(3, 0, noise(24)),
    packet(4, 0, noise(12), 1),
    packet(6, 0x200000, noise(64)),
    packet(99, 0, noise(8)),
    packet(2, 0, zeros(0)),
  );
}

export function nvmeControllerState(): Buffer {
  const submission = (id: number) =>
    join(u64(0x7f200000 + id * 0x10000), u16(1023, id, id, 3, 17 * id, 18 * id), zeros(4));
  const completion = (id: number) =>
    join(u64(0x7f300000 + id * 0x10000), u16(1023, id, 17 * id, 17 * id), u32(id * 0x10000 + 7), zeros(4));
  const queues = join(u16(1, 2, 1, 0), submission(1), submission(2), completion(1));
  const vendor = noise(12);
  const header = join(u16(0), u8(1), zeros(13), u64(queues.length / 4, 0), u64(vendor.length / 4, 0));
  return join(header, queues, vendor, zeros(20));
}

export function spdkNvme(): Buffer {
  const pair = (id: number) =>
    join(
      join(u16(id, id), u32(5 * id, 128, 0), u64(0x100000 + id * 0x10000)),
      join(u16(id, 1), u32(6 * id, 128, id, 1, 0), u64(0x200000 + id * 0x10000)),
    );
  const pairs = join(pair(0), pair(1), zeros(56), pair(3));
  const controller = placed(4096, {
    0: u32(1576, 48, 40, 0),
    16: join(
      u64(0x00000020010100ffn),
      u32(0x00010300, 0x00460001, 1, 0x001f001f),
      u64(0x100000, 0x200000),
      u32(0),
    ),
    272: u32(0, 0, 0, 1, 0x003f003f, 0, 0, 0, 0x100, 0),
    528: join(u16(1), u8(0, 2), u32(1), u32(0x00020002)),
    1560: u16(12, 13),
    1568: u64(0x100),
  });
  const doorbells = placed(4096, { 0: u32(3, 4, 17, 18, 0, 0, 30, 31) });
  const config = placed(4096, { 0: u16(0x4e58, 0x0001, 0x0406, 0x0010) });
  const at = { controller: 4096, pairs: 8192, doorbells: 8192 + pairs.length };
  const header = placed(4096, {
    0: u32(0xafedbc23),
    16: u64(at.doorbells),
    [16 + 8 * 7]: u64(at.doorbells + 4096),
    96: u64(4096),
    [96 + 8 * 7]: u64(4096),
    176: join(
      u64(at.pairs, pairs.length),
      u32(2, 0),
      u64(at.controller, 4096),
      u32(1, 0),
      u64(0x300000, 0x301000),
    ),
  });
  return join(header, controller, pairs, doorbells, config, zeros(100));
}

/** By the name of the kind. */
export const SAMPLES: ReadonlyMap<string, Buffer> = new Map([
  ['mtty', mtty()],
  ['hisi-acc', hisiAcc()],
  ['qat', qat()],
  ['mlx5', mlx5()],
  ['virtio-device-parts', virtioDeviceParts()],
  ['virtio-vfio', virtioVfio()],
  ['xe', xe()],
  ['nvme-controller-state', nvmeControllerState()],
  ['spdk-nvme', spdkNvme()],
  ['qemu-cpr', cprState(ENTRIES, DEVICES)],
]);
