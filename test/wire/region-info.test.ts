// SPDX-License-Identifier: Apache-2.0
/** DEVICE_GET_REGION_INFO: capability chains, the rules of argsz, and hostile chains. */

import t from 'tap';
import {
  decodeRegionInfo,
  Errno,
  encodeRegionInfo,
  type RegionInfo,
  regionInfoLength,
} from '../../src/wire/index.js';
import { hex, refusal, toHex, viewOf } from '../support/hex.js';

const PLAIN: RegionInfo = { argsz: 32, flags: 3, index: 7, size: 256, offset: 0 };
const FULL: RegionInfo = {
  argsz: 96,
  flags: 7,
  index: 2,
  size: 0x4000,
  offset: 0x10000,
  type: { type: 0x80000000, subtype: 5 },
  sparseAreas: [
    { offset: 0x1000, size: 0x1000 },
    { offset: 0x3000, size: 0x800 },
  ],
};
const FULL_BYTES = `
  60000000 0f000000 02000000 20000000 0040000000000000 0000010000000000
  0200 0100 30000000 00000080 05000000
  0100 0100 00000000 02000000 00000000
  0010000000000000 0010000000000000 0030000000000000 0008000000000000`;

function encode(info: RegionInfo, argsz: number): Uint8Array {
  const buffer = new Uint8Array(256);
  return buffer.slice(0, encodeRegionInfo(viewOf(buffer), 0, info, argsz));
}

t.test('a region without capabilities', async (t) => {
  const bytes = encode(PLAIN, 32);
  t.equal(toHex(bytes), toHex(hex('20000000 03000000 07000000 00000000 0001000000000000 0000000000000000')));
  t.strictSame(decodeRegionInfo(viewOf(bytes), 0, 32), PLAIN);
});

t.test('all capabilities', async (t) => {
  t.equal(regionInfoLength(FULL), 96);
  const bytes = encode(FULL, 96);
  t.equal(toHex(bytes), toHex(hex(FULL_BYTES)));
  t.strictSame(decodeRegionInfo(viewOf(bytes), 0, 96), { ...FULL, flags: 15 });
});

t.test('one capability of two, each alone', async (t) => {
  const { type: _, ...areas } = FULL;
  const { sparseAreas: __, ...type } = FULL;
  for (const info of [areas, type]) {
    const bytes = encode(info, 4096);
    t.equal(bytes.length, regionInfoLength(info));
    t.strictSame(decodeRegionInfo(viewOf(bytes), 0, bytes.length), {
      ...info,
      argsz: bytes.length,
      flags: 15,
    });
  }
});

t.test('argsz too small for all: none is included, and the size needed is in the reply', async (t) => {
  for (const argsz of [32, 33, 48, 95]) {
    const bytes = encode(FULL, argsz);
    t.equal(bytes.length, 32);
    const info = decodeRegionInfo(viewOf(bytes), 0, 32);
    t.equal(info.argsz, 96);
    t.equal(info.flags, 15, 'CAPS says that there are some');
    t.equal(info.sparseAreas, undefined);
    t.equal(info.type, undefined);
  }
});

t.test('hostile chains', async (t) => {
  const forged: [string, number, string][] = [
    ['capability past the end', 12, '5c000000'],
    ['capability far outside', 12, 'f0ffffff'],
    ['capability inside the fixed part', 12, '04000000'],
    ['chain that points at itself', 36, '20000000'],
    ['chain that goes back', 52, '20000000'],
    ['areas that leave the message', 56, '03000000'],
    ['areas by the billion', 56, 'ffffffff'],
  ];
  for (const [name, at, bytes] of forged) {
    const message = hex(FULL_BYTES);
    message.set(hex(bytes), at);
    t.equal(
      refusal(() => decodeRegionInfo(viewOf(message), 0, message.length)),
      Errno.EPROTO,
      name,
    );
  }
  const area = hex(FULL_BYTES);
  area.set(hex('ffffffffffffffff'), 64);
  t.equal(
    refusal(() => decodeRegionInfo(viewOf(area), 0, area.length)),
    Errno.EINVAL,
    'area beyond 2^53',
  );
});

t.test('a chain of more capabilities than any server has', async (t) => {
  const bytes = new Uint8Array(32 + 16 * 32);
  const view = viewOf(bytes);
  view.setUint32(12, 32, true);
  for (let i = 0; i < 31; i++) {
    view.setUint16(32 + 16 * i, 99, true);
    view.setUint32(32 + 16 * i + 4, 32 + 16 * (i + 1), true);
  }
  t.equal(
    refusal(() => decodeRegionInfo(view, 0, bytes.length)),
    Errno.EPROTO,
  );
  view.setUint32(32 + 16 * 9 + 4, 0, true);
  t.strictSame(
    Object.keys(decodeRegionInfo(view, 0, bytes.length)),
    ['argsz', 'flags', 'index', 'size', 'offset'],
    'ten unknown ones are passed over',
  );
});
