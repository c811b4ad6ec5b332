// SPDX-License-Identifier: Apache-2.0
/** Properties of all layouts: what is encoded is decoded again, and no bytes make a decoder fail but by a refusal. */

import fc from 'fast-check';
import t from 'tap';
import * as wire from '../../src/wire/index.js';
import { refusal, viewOf } from '../support/hex.js';

const u16 = fc.nat(0xffff);
const u32 = fc.nat(0xffffffff);
const u64 = fc.maxSafeNat();

type Decoder = (view: DataView, at: number, end: number) => unknown;
const access = { offset: 0, region: 0, count: 0 };
const decoders: Record<string, Decoder> = {
  deviceInfo: wire.decodeDeviceInfo,
  irqInfo: wire.decodeIrqInfo,
  dmaMap: wire.decodeDmaMap,
  dmaUnmap: wire.decodeDmaUnmap,
  dmaTransfer64: (view, at, end) => wire.decodeDmaTransfer(view, at, end, 64),
  dmaTransfer32: (view, at, end) => wire.decodeDmaTransfer(view, at, end, 32),
  featureHeader: wire.decodeFeatureHeader,
  loggingStart: wire.decodeDmaLoggingStart,
  loggingReport: wire.decodeDmaLoggingReport,
  dmaMapEntries: wire.decodeDmaMapEntries,
  setIrqs: wire.decodeSetIrqs,
  migrationData: wire.decodeMigrationData,
  regionAccess: (view, at, end) => wire.decodeRegionAccess(view, at, end, access),
  writeMulti: (view, at, end) => {
    const count = wire.decodeWriteMultiCount(view, at, end);
    for (let i = 0; i < count; i++) wire.decodeWriteMultiEntry(view, at, i, access);
  },
  regionInfo: wire.decodeRegionInfo,
  regionInfoRequest: wire.decodeRegionInfoRequest,
  regionIoFds: wire.decodeRegionIoFds,
  version: wire.decodeVersion,
};

t.test('arbitrary bytes are decoded or refused, nothing else', async (t) => {
  // Small words make plausible counts, lengths and offsets much likelier than random bytes would.
  const words = fc.array(fc.oneof(fc.nat(64), u32), { maxLength: 40 }).map((values) => {
    const bytes = new Uint8Array(4 * values.length);
    const view = viewOf(bytes);
    for (const [i, value] of values.entries()) view.setUint32(4 * i, value, true);
    return bytes;
  });
  const input = fc.oneof(words, fc.uint8Array({ maxLength: 160 }));
  for (const [name, decode] of Object.entries(decoders)) {
    fc.assert(
      fc.property(input, fc.nat(20), fc.nat(200), (bytes, at, end) => {
        refusal(() => decode(viewOf(bytes), at, end));
        refusal(() => decode(viewOf(bytes), 0, bytes.length));
      }),
      { numRuns: 400, seed: 1 },
    );
    t.pass(name);
  }
});

/** Encodes into a buffer of `length` bytes at an odd offset and decodes from there. */
function roundTrip(length: number, encode: (view: DataView, at: number) => void, decode: Decoder): unknown {
  const bytes = new Uint8Array(length + 16);
  encode(viewOf(bytes), 5);
  return decode(viewOf(bytes), 5, 5 + length);
}

t.test('what is encoded is decoded', async (t) => {
  const same = <T>(name: string, values: fc.Arbitrary<T>, work: (value: T) => unknown): void => {
    fc.assert(
      fc.property(values, (value) => {
        const result = work(value);
        if (JSON.stringify(result, big) !== JSON.stringify(value, big))
          throw new Error(`${name} came back changed`);
      }),
      { numRuns: 300, seed: 2 },
    );
    t.pass(name);
  };
  const big = (_: string, value: unknown): unknown => (typeof value === 'bigint' ? `${value}n` : value);

  same('DMA_MAP', fc.record({ flags: u32, offset: u64, address: u64, size: u64 }), (value) =>
    roundTrip(32, (view, at) => wire.encodeDmaMap(view, at, value), wire.decodeDmaMap),
  );
  same('DMA_UNMAP', fc.record({ flags: u32, address: u64, size: u64 }), (value) =>
    roundTrip(24, (view, at) => wire.encodeDmaUnmap(view, at, value), wire.decodeDmaUnmap),
  );
  same('SET_IRQS', fc.record({ flags: u32, index: u32, start: u32, count: u32 }), (value) =>
    roundTrip(20, (view, at) => wire.encodeSetIrqs(view, at, value), wire.decodeSetIrqs),
  );
  same('DMA transfer', fc.record({ address: u64, count: u64 }), (value) =>
    roundTrip(16, (view, at) => wire.encodeDmaTransfer(view, at, value, 64), decoders.dmaTransfer64!),
  );
  const ranges = fc.array(fc.record({ iova: u64, length: u64 }), { maxLength: 20 });
  same('DMA_LOGGING_START', fc.record({ pageSize: u64, ranges }), (value) =>
    roundTrip(
      16 + 16 * value.ranges.length,
      (view, at) => wire.encodeDmaLoggingStart(view, at, value),
      wire.decodeDmaLoggingStart,
    ),
  );
  const ioFd = fc.record({
    offset: u64,
    size: u64,
    fdIndex: u32,
    type: u32,
    flags: u32,
    data: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  });
  same('REGION_IO_FDS', fc.array(ioFd, { maxLength: 10 }), (value) =>
    roundTrip(
      wire.regionIoFdsLength(value.length),
      (view, at) =>
        wire.encodeRegionIoFds(view, at, { argsz: 0, flags: 0, index: 0, count: value.length }, value),
      wire.decodeRegionIoFds,
    ),
  );
  const area = fc.record({ offset: u64, size: u64 });
  const region = fc.record({
    flags: u32,
    index: u32,
    size: u64,
    offset: u64,
    areas: fc.option(fc.array(area, { maxLength: 10 })),
    type: fc.option(fc.record({ type: u32, subtype: u32 })),
  });
  same('REGION_INFO', region, ({ areas, type, ...fixed }) => {
    const info: wire.RegionInfo = { argsz: 0, ...fixed };
    if (areas !== null) info.sparseAreas = areas;
    if (type !== null) info.type = type;
    const length = wire.regionInfoLength(info);
    const back = roundTrip(
      length,
      (view, at) => wire.encodeRegionInfo(view, at, info, length),
      wire.decodeRegionInfo,
    ) as wire.RegionInfo;
    const hasCaps = length > 32;
    if (back.argsz !== length || back.flags !== (hasCaps ? (fixed.flags | 8) >>> 0 : fixed.flags))
      return 'argsz or flags';
    return {
      ...fixed,
      index: back.index,
      size: back.size,
      offset: back.offset,
      areas: back.sparseAreas ?? null,
      type: back.type ?? null,
    };
  });
  same('header', fc.record({ id: u16, command: u16, size: u32, flags: u32, error: u32 }), (value) =>
    roundTrip(
      16,
      (view, at) =>
        wire.encodeHeader(view, at, value.id, value.command, value.size, value.flags, value.error),
      (view, at) => ({
        id: wire.messageId(view, at),
        command: wire.messageCommand(view, at),
        size: wire.vfioUserFraming.messageLength(view, at),
        flags: wire.messageFlags(view, at),
        error: wire.messageError(view, at),
      }),
    ),
  );
});
