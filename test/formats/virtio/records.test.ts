// SPDX-License-Identifier: Apache-2.0
/** Format `org.oasis-open.virtio.device-parts`: bytes of its records, there and back, what is refused, descriptions. */
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import { DevstateError } from '../../../src/errors.js';
import {
  decodeDeviceParts,
  decodeVirtioState,
  EnvelopeEncoder,
  encodeVirtioState,
  type FormatRecord,
  inspect,
  newUuid,
  renderInspection,
  VIRTIO_DEVICE_PARTS,
  VIRTIO_FORMAT_VERSION,
  VirtioDeviceType,
  type VirtioState,
  virtioDescription,
} from '../../../src/formats/index.js';
import { fixture } from '../blobs.js';
import { anyVirtioState } from './arbitrary.js';

const NET: VirtioState = {
  deviceType: VirtioDeviceType.net,
  queues: 3,
  config: Buffer.from('5254001234560100 0100 dc05'.replaceAll(' ', ''), 'hex'),
  parts: decodeDeviceParts(fixture('foreign/virtio-device-parts.bin')),
  rings: [
    { queue: 0, available: 0x1234, used: 0x1233 },
    { queue: 1, available: 0x8001, used: 1 },
  ],
  pci: {
    config: new Uint8Array(256).fill(1),
    msixTable: new Uint8Array(16).fill(2),
    msixPending: new Uint8Array(8),
  },
  net: {
    receiveModes: ['promiscuous', 'noMulticast'],
    queuePairs: 1,
    unicast: [Uint8Array.of(0x52, 0x54, 0, 0, 0, 1)],
    multicast: [Uint8Array.of(1, 0, 0x5e, 0, 0, 1)],
    vlans: [5, 4095],
    guestOffloads: 0x8000_0000_0000_0082n,
    rss: Uint8Array.of(9, 8, 7),
  },
};
const version = VIRTIO_FORMAT_VERSION;
const hex = (bytes: Uint8Array | undefined) => Buffer.from(bytes ?? []).toString('hex');
const RECORDS = encodeVirtioState(NET);
const payloadOf = (type: number) => RECORDS.find((record) => record.type === type)?.payload;
const withPayload = (type: number, payload: Uint8Array) =>
  RECORDS.map((record) => (record.type === type ? { ...record, payload } : record));

t.test('bytes of each record, by hand', async (t) => {
  t.same(
    RECORDS.map(({ type, optional }) => [type, optional]),
    [0x10000, 0x10001, 0x10002, 0x10003, 0x10004].map((type) => [type, false]),
  );
  t.equal(hex(payloadOf(0x10000)), `0100 0300 00000000 5254001234560100 0100 dc05`.replaceAll(' ', ''));
  t.ok(
    fixture('foreign/virtio-device-parts.bin').equals(payloadOf(0x10001)!),
    'parts as a device gives them',
  );
  t.equal(hex(payloadOf(0x10002)), '0000 3412 3312 0000 0100 0180 0100 0000'.replaceAll(' ', ''));
  t.equal(
    hex(payloadOf(0x10003)),
    `00010000 10000000 08000000 00000000 ${'01'.repeat(256)} ${'02'.repeat(16)} ${'00'.repeat(8)}`.replaceAll(
      ' ',
      '',
    ),
  );
  t.equal(
    hex(payloadOf(0x10004)),
    '0900 0100 0100 0100 0200 0000 03000000 8200000000000080 525400000001 01005e000001 0500 ff0f 090807'.replaceAll(
      ' ',
      '',
    ),
  );
  t.same(decodeVirtioState(RECORDS), { ...NET, config: Uint8Array.from(NET.config) });
});

t.test('property: there and back', async () => {
  fc.assert(
    fc.property(anyVirtioState, (state) => {
      const records = encodeVirtioState(state);
      const decoded = decodeVirtioState(records);
      const again = encodeVirtioState(decoded);
      return (
        isDeepStrictEqual(structuredClone(decoded), structuredClone(state)) &&
        records.every(({ payload }, index) => Buffer.compare(payload, again[index]!.payload) === 0)
      );
    }),
  );
});

t.test('property: payloads that are taken are given back, others are refused', async (t) => {
  const outcomes = new Map<string, number>();
  const attempt = (records: FormatRecord[]): boolean => {
    let outcome = 'taken';
    let fine = true;
    try {
      const again = encodeVirtioState(decodeVirtioState(records));
      fine = again.every(({ payload }, index) => Buffer.compare(payload, records[index]!.payload) === 0);
    } catch (error) {
      if (!(error instanceof DevstateError)) return false;
      outcome = error.code;
    }
    outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    return fine;
  };
  const types = fc.constantFrom(...RECORDS.map(({ type }) => type));
  fc.assert(
    fc.property(types, fc.nat(400), fc.integer({ min: 0, max: 255 }), fc.nat(400), (type, at, value, cut) => {
      const payload = Buffer.from(payloadOf(type)!);
      payload[at % payload.length] = value;
      return attempt(withPayload(type, payload)) && attempt(withPayload(type, payload.subarray(0, cut)));
    }),
    { numRuns: 2000 },
  );
  fc.assert(
    fc.property(types, fc.uint8Array({ maxLength: 100 }), (type, any) => attempt(withPayload(type, any))),
  );
  t.same([...outcomes.keys()].sort(), ['DEVSTATE_E_STATE_RECORD', 'taken']);
});

t.test('what is missing, twice, unknown, or contradicts the rest', async (t) => {
  const without = (type: number) => RECORDS.filter((record) => record.type !== type);
  const refused: [FormatRecord[], RegExp][] = [
    [without(0x10000), /no record device/],
    [without(0x10002), /no record rings/],
    [[...RECORDS, RECORDS[2]!], /rings came twice/],
    [[...RECORDS, RECORDS[1]!], /comes twice/],
    [[...RECORDS, { type: 0x10005, optional: false, payload: new Uint8Array(0) }], /0x10005 is not known/],
    [withPayload(0x10000, Buffer.from('0100010000000000', 'hex')), /of queue 1, the device has 1/],
    [withPayload(0x10000, Buffer.from('0200030000000000', 'hex')), /network control of a device of type 2/],
    [
      withPayload(0x10002, Buffer.from('01000000000000000000000000000000', 'hex')),
      /queue 0 comes after that of 1/,
    ],
    [withPayload(0x10002, Buffer.from('0000000000000100', 'hex')), /rings.*reserved/],
    [withPayload(0x10003, new Uint8Array(16)), /a configuration space of 0 bytes/],
    [withPayload(0x10004, new Uint8Array(23)), /netControl.*23 bytes/],
    [withPayload(0x10004, Buffer.from(`4000${'00'.repeat(22)}`, 'hex')), /reserved receive modes/],
    [withPayload(0x10004, Buffer.from(`${'00'.repeat(8)}0100${'00'.repeat(14)}0010`, 'hex')), /VLAN above/],
  ];
  for (const [records, message] of refused) {
    t.throws(() => decodeVirtioState(records), { code: 'DEVSTATE_E_STATE_RECORD', message });
  }
  const skipped = { type: 0x10077, optional: true, payload: new Uint8Array(3) };
  t.same(decodeVirtioState([skipped, ...RECORDS]), decodeVirtioState(RECORDS));
  const less = decodeVirtioState(RECORDS.slice(0, 3));
  t.same([less.pci, less.net], [null, null]);
  const parts = NET.parts.map((part) => encodeVirtioState({ ...NET, parts: [part] })[1]!);
  t.same(
    decodeVirtioState([RECORDS[0]!, ...parts, RECORDS[2]!]).parts,
    NET.parts,
    'parts may come in several records',
  );
  const unfit: [VirtioState, RegExp][] = [
    [{ ...NET, queues: 1 }, /of queue 1, the device has 1/],
    [{ ...NET, deviceType: VirtioDeviceType.blk }, /network control/],
    [{ ...NET, config: new Uint8Array(65537) }, /configuration space/],
    [{ ...NET, pci: { ...NET.pci!, msixPending: new Uint8Array(0) } }, /pending bits, not 8/],
    [{ ...NET, pci: { ...NET.pci!, msixTable: new Uint8Array(17) } }, /MSI-X table of 17/],
    [{ ...NET, net: { ...NET.net!, unicast: [new Uint8Array(5)] } }, /MAC address of 5/],
    [{ ...NET, net: { ...NET.net!, vlans: [4096] } }, /VLAN is 4096/],
    [{ ...NET, net: { ...NET.net!, guestOffloads: -1n } }, /guestOffloads/],
    [{ ...NET, rings: [{ queue: 0, available: 65536, used: 0 }] }, /available is 65536/],
  ];
  for (const [state, message] of unfit) {
    t.throws(() => encodeVirtioState(state), { code: 'DEVSTATE_E_STATE_VALUE', message });
  }
});

t.test('as much as a record can hold is taken or refused at once', async (t) => {
  const net = Buffer.alloc(24 + 65535 * 14);
  net.writeUInt16LE(65535, 4);
  net.writeUInt16LE(65535, 6);
  net.writeUInt16LE(65535, 8);
  t.equal(decodeVirtioState(withPayload(0x10004, net)).net?.vlans.length, 65535);
  const huge = Buffer.alloc(16 << 20);
  for (const type of [0x10000, 0x10001, 0x10002, 0x10003, 0x10004]) {
    const before = process.memoryUsage().heapUsed;
    t.throws(() => decodeVirtioState(withPayload(type, huge)), { code: 'DEVSTATE_E_STATE_RECORD' });
    const used = process.memoryUsage().heapUsed - before;
    t.ok(used < 64 << 20, `${used} bytes for record type 0x${type.toString(16)}`);
  }
});

t.test('described for people', async (t) => {
  const { describe, recordName, uuid } = virtioDescription;
  t.equal(uuid, VIRTIO_DEVICE_PARTS.uuid);
  t.equal(recordName(0x10005), undefined);
  t.same(
    RECORDS.map(({ type }) => recordName(type)),
    ['device', 'parts', 'rings', 'pci', 'netControl'],
  );
  t.same(describe?.(0x10000, payloadOf(0x10000)!, version), {
    deviceType: 1,
    queues: 3,
    config: { mac: '52:54:00:12:34:56', status: 1, maxVirtqueuePairs: 1, mtu: 1500 },
  });
  t.match(describe?.(0x10001, payloadOf(0x10001)!, version), {
    parts: [{ part: 'DEV_FEATURES', features: ['0x0000010130bf8024', '0x0000000000000003'] }],
  });
  t.match(describe?.(0x10004, payloadOf(0x10004)!, version), {
    receiveModes: ['promiscuous', 'noMulticast'],
    multicast: ['01:00:5e:00:00:01'],
    guestOffloads: '0x8000000000000082',
    rss: { length: 3, first: '090807' },
  });
  const block = Buffer.alloc(8 + 60);
  block.set([2, 0, 1, 0]);
  block.writeBigUInt64LE(1n << 40n, 8);
  block.writeUInt32LE(4096, 8 + 20);
  block.writeUInt8(1, 8 + 32);
  block.writeUInt8(1, 8 + 56);
  t.match(describe?.(0x10000, block, version), {
    config: { capacity: 2 ** 40, blkSize: 4096, writeback: 1, writeZeroesMayUnmap: 1 },
  });
  t.same(describe?.(0x10000, Buffer.from('0300010000000000aabb', 'hex'), version), {
    deviceType: 3,
    queues: 1,
    config: { bytes: 'aabb' },
  });
});

t.test('a blob of it reads well', async (t) => {
  const encoder = new EnvelopeEncoder({
    format: VIRTIO_DEVICE_PARTS.uuid,
    version,
    model: VIRTIO_DEVICE_PARTS.models[1]!,
    parameters: {},
    producer: { name: 'test', version: '1' },
    stream: newUuid(),
    features: [],
    other: {},
  });
  const blob = [
    encoder.header(),
    ...RECORDS.flatMap(({ type, payload }) => encoder.record(type, 0, payload)),
  ];
  const inspection = await inspect([...blob, encoder.end()], { formats: [virtioDescription] });
  t.match(inspection, { kind: 'envelope', error: null, format: { name: VIRTIO_DEVICE_PARTS.name } });
  const text = renderInspection(inspection, { fields: true });
  t.match(text, /mac = "52:54:00:12:34:56"/);
  for (const line of text.split('\n')) t.ok(line.length <= 80, line);
});
