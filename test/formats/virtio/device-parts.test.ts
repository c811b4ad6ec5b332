// SPDX-License-Identifier: Apache-2.0
/** Device parts of virtio 1.4: bytes of each, what is refused, there and back, order. */
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import { DevstateError } from '../../../src/errors.js';
import {
  decodeDeviceParts,
  devicePartName,
  devicePartProblems,
  encodeDeviceParts,
  PCI_COMMON_CONFIG_FIELDS,
  type VirtioDevicePart,
} from '../../../src/formats/index.js';
import { fixture } from '../blobs.js';
import { anyDevicePart } from './arbitrary.js';

const FIXTURE = fixture('foreign/virtio-device-parts.bin');
const hex = (text: string) => Buffer.from(text.replaceAll(/[ |]/g, ''), 'hex');

/** Header and value by hand, and what they are. */
const PARTS: readonly [bytes: string, part: VirtioDevicePart][] = [
  [
    '0001 01 00 | 0000000000000000 | 10000000 | 2480bf3001010000 0300000000000080',
    { part: 'DEV_FEATURES', optional: true, features: [0x1_0130_bf80_24n, 0x8000_0000_0000_0003n] },
  ],
  [
    '0101 00 00 | 0000000000000000 | 08000000 | 0100000000000000',
    { part: 'DRV_FEATURES', optional: false, features: [1n] },
  ],
  [
    '0201 00 00 | 1200000000000000 | 02000000 | 0300',
    { part: 'PCI_COMMON_CFG', optional: false, offset: 18, value: 3 },
  ],
  [
    '0201 00 00 | 2000000000000000 | 08000000 | 0010000000001000',
    { part: 'PCI_COMMON_CFG', optional: false, offset: 32, value: 2 ** 52 + 4096 },
  ],
  ['0301 00 00 | 0000000000000000 | 01000000 | 0f', { part: 'DEVICE_STATUS', optional: false, status: 15 }],
  [
    '0401 00 00 | 0200000000000000 | 20000000 | 0001 ffff 0100 0000 0010000000000000 0020000000000000 0030000000000000',
    {
      part: 'VQ_CFG',
      optional: false,
      queue: 2,
      size: 256,
      vector: 0xffff,
      enabled: 1,
      descriptors: 0x1000,
      driver: 0x2000,
      device: 0x3000,
    },
  ],
  [
    '0501 00 00 | 0200000000000000 | 08000000 | 0400 0700 00000000',
    { part: 'VQ_NOTIFY_CFG', optional: false, queue: 2, notifyOffset: 4, notifyConfigData: 7 },
  ],
  [
    '0002 01 00 | 0102030405060708 | 03000000 | aabbcc',
    {
      part: 'opaque',
      optional: true,
      type: 0x200,
      selector: Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8),
      value: Uint8Array.of(0xaa, 0xbb, 0xcc),
    },
  ],
  [
    '0201 00 00 | 4000000000000000 | 01000000 | 05',
    {
      part: 'opaque',
      optional: false,
      type: 0x102,
      selector: Uint8Array.of(0x40, 0, 0, 0, 0, 0, 0, 0),
      value: Uint8Array.of(5),
    },
  ],
];

t.test('bytes of each part, by hand', async (t) => {
  for (const [bytes, part] of PARTS) {
    t.same(decodeDeviceParts(hex(bytes)), [part], part.part);
    t.equal(Buffer.from(encodeDeviceParts([part])).toString('hex'), hex(bytes).toString('hex'), part.part);
  }
  const all = Buffer.concat(PARTS.map(([bytes]) => hex(bytes)));
  t.same(
    decodeDeviceParts(all),
    PARTS.map(([, part]) => part),
  );
  t.same(decodeDeviceParts(new Uint8Array(0)), []);
  t.equal(devicePartName(0x105), 'VQ_NOTIFY_CFG');
  t.equal(devicePartName(0x106), undefined);
  const shared = Buffer.from(all);
  const parts = decodeDeviceParts(shared);
  shared.fill(0);
  t.same(parts.at(-1), PARTS.at(-1)?.[1], 'nothing is shared');
});

t.test('fields of the common configuration lie as in the specification, without gaps', async (t) => {
  let end = 0;
  for (const [offset, { name, width }] of PCI_COMMON_CONFIG_FIELDS) {
    t.equal(offset, end, name);
    end += width;
  }
  t.equal(end, 64);
});

t.test('property: there and back', async () => {
  fc.assert(
    fc.property(fc.array(anyDevicePart, { maxLength: 8 }), (parts) => {
      const bytes = encodeDeviceParts(parts);
      const decoded = decodeDeviceParts(bytes);
      return (
        isDeepStrictEqual(structuredClone(decoded), structuredClone(parts)) &&
        Buffer.compare(encodeDeviceParts(decoded), bytes) === 0
      );
    }),
  );
});

t.test('property: bytes that are taken are given back, others are refused', async (t) => {
  let taken = 0;
  let refused = 0;
  const attempt = (bytes: Uint8Array): boolean => {
    try {
      const same = Buffer.compare(encodeDeviceParts(decodeDeviceParts(bytes)), bytes) === 0;
      taken++;
      return same;
    } catch (error) {
      refused++;
      return error instanceof DevstateError && error.code === 'DEVSTATE_E_STATE_RECORD';
    }
  };
  const edit = fc.tuple(fc.nat(FIXTURE.length - 1), fc.integer({ min: 0, max: 255 }));
  fc.assert(
    fc.property(fc.array(edit, { maxLength: 3 }), fc.nat(FIXTURE.length), (edits, cut) => {
      const bytes = Buffer.from(FIXTURE);
      for (const [at, value] of edits) bytes[at] = value;
      return attempt(bytes) && attempt(bytes.subarray(0, cut));
    }),
    { numRuns: 1000 },
  );
  fc.assert(fc.property(fc.uint8Array({ maxLength: 100 }), attempt));
  t.ok(taken > 100 && refused > 100, `${taken} taken, ${refused} refused`);
  const ends = new Set<number>([0]);
  for (let at = 0; at < FIXTURE.length; ) {
    at += 16 + FIXTURE.readUInt32LE(at + 12);
    ends.add(at);
  }
  for (let length = 0; length < FIXTURE.length; length++) {
    const decode = () => decodeDeviceParts(FIXTURE.subarray(0, length));
    if (ends.has(length)) t.doesNotThrow(decode);
    else t.throws(decode, { code: 'DEVSTATE_E_STATE_RECORD' });
  }
});

t.test('what cannot be is named', async (t) => {
  const refused: [string, RegExp][] = [
    ['0301 02 00 | 0000000000000000 | 01000000 | 0f', /DEVICE_STATUS.*reserved flags/],
    ['0301 00 01 | 0000000000000000 | 01000000 | 0f', /reserved byte/],
    ['0301 00 00 | 0000000000000001 | 01000000 | 0f', /reserved bytes of the selector/],
    ['0301 00 00 | 0000000000000000 | 02000000 | 0f00', /2 bytes, not 1/],
    ['0301 00 00 | 0000000000000000 | 00000000', /0 bytes, not 1/],
    ['0101 00 00 | 0000000000000000 | 00000000', /0 bytes of feature words/],
    ['0101 00 00 | 0000000000000000 | 0c000000 | 000000000000000000000000', /12 bytes of feature words/],
    ['0201 00 00 | 1200000000000000 | 04000000 | 00000000', /4 bytes of num_queues, not 2/],
    ['0201 00 00 | 1200000001000000 | 02000000 | 0000', /selector/],
    ['0201 00 00 | 2000000000000000 | 08000000 | 0000000000002000', /2\^53/],
    [`0401 00 00 | 0200010000000000 | 20000000 |${'00'.repeat(32)}`, /selector/],
    [`0401 00 00 | 0200000000000000 | 1f000000 |${'00'.repeat(31)}`, /31 bytes, not 32/],
    [`0401 00 00 | 0200000000000000 | 20000000 |${'000000000000ff'.padEnd(64, '0')}`, /reserved bytes/],
    ['0501 00 00 | 0200000000000000 | 08000000 | 0000000000000001', /reserved bytes/],
    ['0002 00 00 | 0000000000000000 | ffffffff | 00', /0x200.*1 bytes of a value of 4294967295/],
    ['0002 00', /within a header: 3 bytes/],
  ];
  for (const [bytes, message] of refused) {
    t.throws(() => decodeDeviceParts(hex(bytes)), { code: 'DEVSTATE_E_STATE_RECORD', message }, bytes);
  }
  const status = { part: 'DEVICE_STATUS', optional: false, status: 1 } as const;
  const queue = PARTS[5]![1] as Extract<VirtioDevicePart, { part: 'VQ_CFG' }>;
  const opaque = PARTS[7]![1] as Extract<VirtioDevicePart, { part: 'opaque' }>;
  const unfit: [VirtioDevicePart, RegExp][] = [
    [{ ...status, status: 256 }, /status is 256/],
    [{ ...queue, queue: 65536 }, /queue is 65536/],
    [{ ...queue, descriptors: 2 ** 53 }, /descriptors/],
    [{ part: 'DRV_FEATURES', optional: false, features: [] }, /without a word/],
    [{ part: 'DRV_FEATURES', optional: false, features: [2n ** 64n] }, /more than 64 bits/],
    [{ part: 'PCI_COMMON_CFG', optional: false, offset: 17, value: 0 }, /no field at offset 17/],
    [{ part: 'PCI_COMMON_CFG', optional: false, offset: 20, value: 256 }, /device_status is 256/],
    [{ ...opaque, selector: new Uint8Array(7) }, /selector of 7 bytes/],
    [{ ...opaque, type: 65536 }, /type is 65536/],
    [{ ...opaque, type: 0x103 }, /an opaque part of type DEVICE_STATUS/],
    [{ ...opaque, type: 0x102, selector: new Uint8Array(8) }, /an opaque part of type PCI_COMMON_CFG/],
  ];
  for (const [part, message] of unfit) {
    t.throws(() => encodeDeviceParts([part]), { code: 'DEVSTATE_E_STATE_VALUE', message });
  }
});

t.test('more parts than any device has', async (t) => {
  const part = hex('0002 00 00 | 0000000000000000 | 00000000');
  const many = Buffer.concat(Array.from({ length: 65536 }, () => part));
  t.equal(decodeDeviceParts(many).length, 65536);
  t.throws(() => decodeDeviceParts(Buffer.concat([many, part])), { message: /more than 65536 parts/ });
});

t.test('the order that a device asks for', async (t) => {
  const parts = decodeDeviceParts(FIXTURE);
  t.same(devicePartProblems(parts), []);
  t.same(devicePartProblems([parts[3]!, parts[1]!]), [
    'DRV_FEATURES comes after a part that it has to precede',
  ]);
  t.same(devicePartProblems([parts[5]!, parts[5]!]), ['VQ_CFG of queue 0 comes twice']);
  t.same(devicePartProblems([parts[2]!, parts[3]!, parts[2]!]), ['PCI_COMMON_CFG at 16 comes twice']);
  t.same(devicePartProblems([{ ...parts[0]!, optional: false }]), ['DEV_FEATURES is not marked optional']);
  t.same(devicePartProblems([parts[9]!, parts[9]!]), [], 'what is not known may be there more than once');
  const many = Array.from({ length: 100 }, (_, queue) => ({ ...parts[5]!, queue }) as VirtioDevicePart);
  t.equal(devicePartProblems([...many, ...many]).length, 16, 'no more than can be read');
});
