// SPDX-License-Identifier: Apache-2.0
/** Structures of the kernel's VFIO and iommufd as bytes written by hand from the headers, and the addon's checks of them. */

import { openSync } from 'node:fs';
import t from 'tap';
import { checkObject, Errno, native, Protection } from '../../src/native/index.js';
import { Fd } from '../../src/transport/index.js';
import * as uapi from '../../src/vfio/uapi/index.js';
import { hex, refusal, toHex } from '../support/hex.js';
import { memfd } from '../support/memory.js';

t.test('requests', async (t) => {
  // _IO(';', 100 + n) and _IO(';', 0x80 + n).
  t.equal(uapi.VfioRequest.GET_API_VERSION, 0x3b64);
  t.equal(uapi.VfioRequest.DEVICE_SET_IRQS, 0x3b6e);
  t.equal(uapi.VfioRequest.IOMMU_MAP_DMA, 0x3b71);
  t.equal(uapi.VfioRequest.DEVICE_FEATURE, 0x3b75);
  t.equal(uapi.VfioRequest.DEVICE_BIND_IOMMUFD, 0x3b76);
  t.equal(uapi.IommufdRequest.IOAS_ALLOC, 0x3b81);
  t.equal(uapi.IommufdRequest.IOAS_MAP_FILE, 0x3b8f);
  t.equal(uapi.IommufdRequest.IOAS_CHANGE_PROCESS, 0x3b92);
});

t.test('what is asked', async (t) => {
  const cases: [string, Uint8Array, string][] = [
    ['GROUP_GET_STATUS', uapi.encodeGroupStatus(), '08000000 00000000'],
    [
      'IOMMU_MAP_DMA',
      uapi.encodeMapDma({ flags: 3, iova: 0x1_0000_0000, size: 0x2000 }),
      '20000000 03000000 0000000000000000 0000000001000000 0020000000000000',
    ],
    [
      'IOMMU_UNMAP_DMA',
      uapi.encodeUnmapDma({ flags: 6, iova: 0, size: 0 }),
      '18000000 06000000 0000000000000000 0000000000000000',
    ],
    ['IOMMU_GET_INFO', uapi.encodeIommuInfo(), '18000000 00000000 0000000000000000 00000000 00000000'],
    ['DEVICE_GET_INFO', uapi.encodeDeviceInfo(), '18000000 00000000 00000000 00000000 00000000 00000000'],
    [
      'DEVICE_SET_IRQS with eventfds',
      uapi.encodeSetIrqsRequest({ flags: 0x24, index: 1, start: 2, count: 2 }, { fds: [7, -1] }),
      '1c000000 24000000 01000000 02000000 02000000 07000000 ffffffff',
    ],
    [
      'DEVICE_SET_IRQS with booleans',
      uapi.encodeSetIrqsRequest(
        { flags: 0x0a, index: 2, start: 0, count: 3 },
        { bools: [true, false, true] },
      ),
      '17000000 0a000000 02000000 00000000 03000000 010001',
    ],
    [
      'DEVICE_FEATURE',
      uapi.encodeFeature(0x10002, hex('0102030405060708')),
      '10000000 02000100 0102030405060708',
    ],
    ['DEVICE_BIND_IOMMUFD', uapi.encodeBindIommufd(9), '10000000 00000000 09000000 00000000'],
    ['DEVICE_ATTACH_IOMMUFD_PT', uapi.encodeAttachIommufd(5), '0c000000 00000000 05000000'],
    ['DEVICE_DETACH_IOMMUFD_PT', uapi.encodeDetachIommufd(), '08000000 00000000'],
    ['DESTROY', uapi.encodeDestroy(3), '08000000 03000000'],
    ['IOAS_ALLOC', uapi.encodeIoasAlloc(), '0c000000 00000000 00000000'],
    [
      'IOAS_IOVA_RANGES',
      uapi.encodeIovaRanges(4, 256),
      '20000000 04000000 00010000 00000000 0000000000000000 0000000000000000',
    ],
    [
      'IOAS_MAP',
      uapi.encodeIoasMap({ flags: 7, ioas: 1, iova: 0x3000, length: 0x1000 }),
      '28000000 07000000 01000000 00000000 0000000000000000 0010000000000000 0030000000000000',
    ],
    [
      'IOAS_MAP_FILE',
      uapi.encodeIoasMapFile({ flags: 5, ioas: 1, fd: 8, start: 0x4000, length: 0x1000, iova: 0x3000 }),
      '28000000 05000000 01000000 08000000 0040000000000000 0010000000000000 0030000000000000',
    ],
    [
      'IOAS_UNMAP',
      uapi.encodeIoasUnmap(1, 0x3000, 0x1000),
      '18000000 01000000 0030000000000000 0010000000000000',
    ],
    ['IOAS_CHANGE_PROCESS', uapi.encodeChangeProcess(), '08000000 00000000'],
  ];
  for (const [name, bytes, expected] of cases) t.equal(toHex(bytes), toHex(hex(expected)), name);
});

t.test('what is answered', async (t) => {
  t.equal(uapi.decodeGroupStatus(hex('08000000 03000000')), 3);
  t.equal(uapi.decodeUnmapped(hex('18000000 00000000 0000000000000000 0030000000000000')), 0x3000);
  t.same(uapi.decodeDeviceInfo(hex('18000000 03000000 09000000 05000000 00000000 00000000')), {
    flags: 3,
    regions: 9,
    irqs: 5,
  });
  t.equal(uapi.decodeBindIommufd(hex('10000000 00000000 09000000 02000000')), 2);
  t.equal(uapi.decodeAttachIommufd(hex('0c000000 00000000 06000000')), 6);
  t.equal(uapi.decodeIoasAlloc(hex('0c000000 00000000 04000000')), 4);
  t.equal(uapi.decodeIoasUnmapped(hex('18000000 01000000 0000000000000000 0010000000000000')), 0x1000);
  t.same(
    uapi.decodeIovaRanges(hex('20000000 04000000 02000000 00000000 0000000000000000 0010000000000000')),
    {
      count: 2,
      alignment: 4096,
    },
  );
  const ranges = hex('0000000000000000 ffffdffe00000000 0000f0fe00000000 ffffffffffffffff');
  const expected = [
    { start: 0, last: 0xfedfffff },
    { start: 0xfef00000, last: Number.MAX_SAFE_INTEGER },
  ];
  t.same(uapi.decodeIovaRangeArray(ranges, 2), expected);
  t.same(uapi.decodeIovaRangeArray(ranges, 99), expected, 'no more than there are');

  const head = '58000000 03000000 0010204000000000 18000000 00000000';
  const iovaRange = '0100 0100 48000000 02000000 00000000 ';
  const info = hex(`${head} ${iovaRange} ${toHex(ranges)} 0300 0100 00000000 ffff0000 00000000`);
  t.same(uapi.decodeIommuInfo(info), {
    argsz: 0x58,
    pageSizes: 0x40201000n,
    iovaRanges: expected,
    dmaAvailable: 65535,
  });
  t.same(
    uapi.decodeIommuInfo(info.subarray(0, 24)),
    { argsz: 0x58, pageSizes: 0x40201000n, iovaRanges: [], dmaAvailable: undefined },
    'too short an answer has no capabilities',
  );
  const circle = info.slice();
  circle[0x4c] = 0x18;
  t.equal(
    refusal(() => uapi.decodeIommuInfo(circle)),
    Errno.EPROTO,
    'a chain that goes back',
  );
});

t.test('the addon keeps the kernel within what it is given', async (t) => {
  // Any file will do: what is wrong is refused before the kernel sees it, what is right gets as far as ENOTTY.
  const fd = new Fd(openSync('/dev/null', 'r+'));
  const memory = memfd(8192);
  const mapping = checkObject(native.map(memory.number, 0, 8192, Protection.readWrite), 'map');
  t.teardown(() => {
    mapping.unmap();
    memory.close();
    fd.close();
  });
  const { VfioRequest } = uapi;
  const struct = uapi.encodeMapDma({ flags: 3, iova: 0, size: 0 });
  const memoryCall = (part: typeof mapping | Uint8Array, offset: number, length: number, at = [8, 24]) =>
    native.vfioCallMemory(fd.number, VfioRequest.IOMMU_MAP_DMA, struct, at[0]!, at[1]!, part, offset, length);

  t.equal(native.vfioCall(fd.number, VfioRequest.GET_API_VERSION, 0), -Errno.ENOTTY);
  t.equal(native.vfioCall(fd.number, 0x5401, 0), -Errno.EINVAL, "a terminal's request");
  t.equal(
    native.vfioCallStruct(fd.number, VfioRequest.GROUP_GET_STATUS, hex('08000000 00000000')),
    -Errno.ENOTTY,
  );
  for (const wrong of ['', '080000', '09000000 00000000', '00000000 00000000', 'ffffffff 00000000'])
    t.equal(native.vfioCallStruct(fd.number, VfioRequest.GROUP_GET_STATUS, hex(wrong)), -Errno.EINVAL, wrong);
  t.equal(memoryCall(mapping, 4096, 4096), -Errno.ENOTTY);
  t.match(toHex(struct), /0010000000000000$/, 'the length is put in');
  t.notMatch(toHex(struct.subarray(8, 16)), /^0+$/, 'and the address');
  t.equal(memoryCall(new Uint8Array(16), 0, 16), -Errno.ENOTTY);
  t.equal(memoryCall(mapping, 4096, 4097), -Errno.EINVAL, 'more than is mapped');
  t.equal(memoryCall(new Uint8Array(16), 8, 9), -Errno.EINVAL, 'more than there is');
  t.equal(memoryCall(mapping, 8193, 0), -Errno.EINVAL);
  t.equal(memoryCall(mapping, 0, 4096, [25, 24]), -Errno.EINVAL, 'a pointer behind the structure');
  t.equal(memoryCall(mapping, 0, 4096, [8, 25]), -Errno.EINVAL, 'a length behind the structure');
  t.throws(() => memoryCall({} as Uint8Array, 0, 0), TypeError);
  t.equal(native.vfioSetContainer(fd.number, fd.number), -Errno.ENOTTY);
  t.equal(native.vfioGetDevice(fd.number, '0000:00:03.0'), -Errno.ENOTTY);
  t.equal(native.vfioGetDevice(fd.number, 'x'.repeat(300)), -Errno.EINVAL);
  mapping.unmap();
  t.throws(() => memoryCall(mapping, 0, 4096), TypeError, 'an address that is mapped no more');
});
