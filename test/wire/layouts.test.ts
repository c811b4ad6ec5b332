// SPDX-License-Identifier: Apache-2.0
/** Every message layout as bytes written by hand from the specification: bytes → value → the same bytes. */

import t from 'tap';
import * as wire from '../../src/wire/index.js';
import { hex, refusal, toHex, viewOf } from '../support/hex.js';

const { Errno } = wire;

interface Layout {
  name: string;
  bytes: string;
  value: unknown;
  decode: (view: DataView, at: number, end: number) => unknown;
  encode: (view: DataView, at: number) => void;
  /** Bytes that the receiver needs at least; those after it are data. */
  fixed: number;
}

function regionAccess(view: DataView, at: number, end: number): wire.RegionAccess {
  const access = { offset: 0, region: 0, count: 0 };
  wire.decodeRegionAccess(view, at, end, access);
  return access;
}

const deviceInfo = { argsz: 16, flags: 3, regions: 9, irqs: 5 };
const irqInfo = { argsz: 16, flags: 7, index: 2, count: 0x801 };
const dmaMap = { flags: 7, offset: 0x1000, address: 0x1_0000_0000, size: 0x1f_ffff_ffff_ffff };
const dmaUnmap = { flags: 2, address: 0, size: 0 };
const setIrqs = { flags: 0x24, index: 2, start: 1, count: 3 };
const migrationData = { argsz: 0x100008, size: 0x100000 };
const loggingStart = {
  pageSize: 4096,
  ranges: [
    { iova: 0x1000, length: 0x2000 },
    { iova: 0x1_0000_0000, length: 0x4000 },
  ],
};
const loggingReport = { iova: 0x80000000, length: 0x200000, pageSize: 0x1000 };
const maps = [
  { address: 0, size: 0xa0000, flags: 3 },
  { address: 0x100000, size: 0x7ff00000, flags: 1 },
];
const ioFdsHeader = { argsz: 56, flags: 0, index: 1, count: 1 };
const ioFd = { offset: 0x1000, size: 4, fdIndex: 2, type: 1, flags: 5, data: 0xfedcba9876543210n };

const layouts: Layout[] = [
  {
    name: 'DEVICE_GET_INFO',
    bytes: '10000000 03000000 09000000 05000000',
    value: deviceInfo,
    decode: wire.decodeDeviceInfo,
    encode: (view, at) => wire.encodeDeviceInfo(view, at, deviceInfo),
    fixed: 16,
  },
  {
    name: 'DEVICE_GET_IRQ_INFO',
    bytes: '10000000 07000000 02000000 01080000',
    value: irqInfo,
    decode: wire.decodeIrqInfo,
    encode: (view, at) => wire.encodeIrqInfo(view, at, irqInfo),
    fixed: 16,
  },
  {
    name: 'DMA_MAP',
    bytes: '20000000 07000000 0010000000000000 0000000001000000 ffffffffffff1f00',
    value: dmaMap,
    decode: wire.decodeDmaMap,
    encode: (view, at) => wire.encodeDmaMap(view, at, dmaMap),
    fixed: 32,
  },
  {
    name: 'DMA_UNMAP of everything',
    bytes: '18000000 02000000 0000000000000000 0000000000000000',
    value: dmaUnmap,
    decode: wire.decodeDmaUnmap,
    encode: (view, at) => wire.encodeDmaUnmap(view, at, dmaUnmap),
    fixed: 24,
  },
  {
    name: 'DMA_READ as specified',
    bytes: '0020000000000000 0400000000000000',
    value: { address: 0x2000, count: 4 },
    decode: (view, at, end) => wire.decodeDmaTransfer(view, at, end, 64),
    encode: (view, at) => wire.encodeDmaTransfer(view, at, { address: 0x2000, count: 4 }, 64),
    fixed: 16,
  },
  {
    name: "DMA_READ in QEMU's layout",
    bytes: '0020000000000000 04000000',
    value: { address: 0x2000, count: 4 },
    decode: (view, at, end) => wire.decodeDmaTransfer(view, at, end, 32),
    encode: (view, at) => wire.encodeDmaTransfer(view, at, { address: 0x2000, count: 4 }, 32),
    fixed: 12,
  },
  {
    name: 'DEVICE_SET_IRQS',
    bytes: '14000000 24000000 02000000 01000000 03000000',
    value: setIrqs,
    decode: wire.decodeSetIrqs,
    encode: (view, at) => wire.encodeSetIrqs(view, at, setIrqs),
    fixed: 20,
  },
  {
    name: 'MIG_DATA_READ',
    bytes: '08001000 00001000',
    value: migrationData,
    decode: wire.decodeMigrationData,
    encode: (view, at) => wire.encodeMigrationData(view, at, migrationData),
    fixed: 8,
  },
  {
    name: 'REGION_READ',
    bytes: '1c10000000000000 00000000 04000000',
    value: { offset: 0x101c, region: 0, count: 4 },
    decode: regionAccess,
    encode: (view, at) => wire.encodeRegionAccess(view, at, 0x101c, 0, 4),
    fixed: 16,
  },
  {
    name: 'DEVICE_FEATURE header',
    bytes: '10000000 02000100',
    value: { argsz: 16, flags: 0x10002 },
    decode: wire.decodeFeatureHeader,
    encode: (view, at) => wire.encodeFeatureHeader(view, at, 16, 0x10002),
    fixed: 8,
  },
  {
    name: 'DMA_LOGGING_START',
    bytes: `0010000000000000 02000000 00000000
            0010000000000000 0020000000000000 0000000001000000 0040000000000000`,
    value: loggingStart,
    decode: wire.decodeDmaLoggingStart,
    encode: (view, at) => wire.encodeDmaLoggingStart(view, at, loggingStart),
    fixed: 48,
  },
  {
    name: 'DMA_LOGGING_REPORT',
    bytes: '0000008000000000 0000200000000000 0010000000000000',
    value: loggingReport,
    decode: wire.decodeDmaLoggingReport,
    encode: (view, at) => wire.encodeDmaLoggingReport(view, at, loggingReport),
    fixed: 24,
  },
  {
    name: 'DEVSTATE_DMA_MAPS',
    bytes: `0000000000000000 00000a0000000000 03000000 00000000
            0000100000000000 0000f07f00000000 01000000 00000000`,
    value: maps,
    decode: wire.decodeDmaMapEntries,
    encode: (view, at) => wire.encodeDmaMapEntries(view, at, maps),
    fixed: 0,
  },
  {
    name: 'DEVICE_GET_REGION_IO_FDS reply',
    bytes: `38000000 00000000 01000000 01000000
            0010000000000000 0400000000000000 02000000 01000000 05000000 00000000 1032547698badcfe`,
    value: [ioFd],
    decode: wire.decodeRegionIoFds,
    encode: (view, at) => wire.encodeRegionIoFds(view, at, ioFdsHeader, [ioFd]),
    fixed: 56,
  },
  {
    name: 'DEVICE_GET_REGION_IO_FDS request',
    bytes: '38000000 00000000 01000000 01000000',
    value: ioFdsHeader,
    decode: wire.decodeRegionIoFdsHeader,
    encode: (view, at) => wire.encodeRegionIoFds(view, at, ioFdsHeader),
    fixed: 16,
  },
];

for (const { name, bytes, value, decode, encode, fixed } of layouts) {
  t.test(name, async (t) => {
    const expected = hex(bytes);
    // Not at the start of the buffer and not aligned, as a payload behind a header in a reused buffer may be.
    for (const at of [0, 16, 3]) {
      const buffer = new Uint8Array(at + expected.length + 7).fill(0xa5);
      buffer.set(expected, at);
      t.strictSame(decode(viewOf(buffer), at, at + expected.length), value, `decoded at ${at}`);
      const written = new Uint8Array(buffer.length).fill(0xa5);
      encode(viewOf(written), at);
      t.equal(toHex(written), toHex(buffer), `encoded at ${at}, nothing around it touched`);
    }
    for (let length = 0; length < fixed; length++) {
      const cut = expected.slice(0, length);
      t.equal(
        refusal(() => decode(viewOf(cut), 0, length)),
        Errno.EINVAL,
        `${length} bytes are too few`,
      );
    }
  });
}

t.test('header', async (t) => {
  const bytes = hex('3412 0a00 20000000 10000000 00000000');
  const view = viewOf(bytes);
  t.equal(wire.messageId(view), 0x1234);
  t.equal(wire.messageCommand(view), wire.Command.REGION_WRITE);
  t.equal(wire.vfioUserFraming.messageLength(view, 0), 32);
  t.equal(wire.messageFlags(view), wire.HeaderFlag.NO_REPLY);
  t.equal(wire.messageError(view), 0);
  const written = new Uint8Array(16);
  wire.encodeHeader(viewOf(written), 0, 0x1234, 10, 32, wire.HeaderFlag.NO_REPLY);
  t.equal(toHex(written), toHex(bytes));

  wire.encodeReplyHeader(viewOf(written), 0, 0xffff, 9, 20);
  t.equal(toHex(written), toHex(hex('ffff 0900 24000000 01000000 00000000')), 'reply');
  wire.encodeReplyHeader(viewOf(written), 0, 0xffff, 9, 20, Errno.EFAULT);
  t.equal(
    toHex(written),
    toHex(hex('ffff 0900 10000000 21000000 0e000000')),
    'an error reply is a header alone',
  );
});

t.test('64-bit values', async (t) => {
  const values: [string, number | undefined][] = [
    ['0000000000000000', 0],
    ['ffffffff00000000', 0xffffffff],
    ['0000000001000000', 2 ** 32],
    ['ffffffffffff1f00', Number.MAX_SAFE_INTEGER],
    ['0000000000002000', undefined],
    ['0000000000000080', undefined],
    ['ffffffffffffffff', undefined],
  ];
  for (const [bytes, value] of values) {
    const view = viewOf(hex(bytes));
    if (value === undefined) {
      t.equal(
        refusal(() => wire.readU64(view, 0)),
        Errno.EINVAL,
        `${bytes} is refused`,
      );
      continue;
    }
    t.equal(wire.readU64(view, 0), value);
    const written = new Uint8Array(8);
    wire.writeU64(viewOf(written), 0, value);
    t.equal(toHex(written), bytes);
  }
});

t.test('REGION_WRITE_MULTI', async (t) => {
  const bytes = hex(`0200000000000000
    0010000000000000 00000000 04000000 0100000000000000
    0810000000000000 02000000 08000000 1122334455667788`);
  const view = viewOf(bytes);
  t.equal(wire.decodeWriteMultiCount(view, 0, bytes.length), 2);
  const access = { offset: 0, region: 0, count: 0 };
  t.equal(wire.decodeWriteMultiEntry(view, 0, 1, access), 32);
  t.strictSame(access, { offset: 0x1008, region: 2, count: 8 });
  t.equal(
    refusal(() => wire.decodeWriteMultiCount(view, 0, bytes.length - 1)),
    Errno.EINVAL,
    'cut',
  );
  view.setUint32(8 + 24 + 12, 9, true);
  t.equal(
    refusal(() => wire.decodeWriteMultiEntry(view, 0, 1, access)),
    Errno.EINVAL,
    '9 bytes',
  );
  view.setUint32(4, 0x1fffff, true);
  t.equal(
    refusal(() => wire.decodeWriteMultiCount(view, 0, bytes.length)),
    Errno.EINVAL,
    'a count whose entries would overflow',
  );
});

t.test('DMA_LOGGING_START bounds its ranges before it allocates for them', async (t) => {
  const bytes = hex('0010000000000000 ffffffff 00000000');
  t.equal(
    refusal(() => wire.decodeDmaLoggingStart(viewOf(bytes), 0, 16)),
    Errno.E2BIG,
  );
  bytes.set(hex('00100000'), 8);
  t.equal(
    refusal(() => wire.decodeDmaLoggingStart(viewOf(bytes), 0, 16)),
    Errno.EINVAL,
  );
});

t.test('DMA_LOGGING_REPORT refuses page sizes that are no power of two', async (t) => {
  for (const pageSize of ['0000000000000000', '0118000000000000', '0100000000000200']) {
    const bytes = hex(`0000000000000000 0000200000000000 ${pageSize}`);
    t.equal(
      refusal(() => wire.decodeDmaLoggingReport(viewOf(bytes), 0, 24)),
      Errno.EINVAL,
      pageSize,
    );
  }
});

t.test('length of a dirty bitmap', async (t) => {
  for (const [length, pageSize, expected] of [
    [1, 4096, 8],
    [64 * 4096, 4096, 8],
    [64 * 4096 + 1, 4096, 16],
    [2 ** 40, 4096, 2 ** 25],
    [4096, 2 ** 30, 8],
  ] as const) {
    t.equal(wire.dirtyBitmapLength(length, pageSize), expected, `${length} bytes in pages of ${pageSize}`);
  }
});

t.test('names', async (t) => {
  t.equal(wire.commandName(18), 'MIG_DATA_WRITE');
  t.equal(wire.commandName(99), 'command 99');
  t.equal(wire.migrationStateName(7), 'PRE_COPY_P2P');
  t.equal(wire.migrationStateName(8), 'state 8');
  t.equal(wire.errnoName(22), 'EINVAL');
  t.equal(wire.errnoName(99999), 'errno 99999');
});
