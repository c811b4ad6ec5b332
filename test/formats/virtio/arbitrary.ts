// SPDX-License-Identifier: Apache-2.0
/** Any `VirtioState` that a device may be in. */
import fc from 'fast-check';
import {
  NET_RECEIVE_MODES,
  PCI_COMMON_CONFIG_FIELDS,
  type VirtioDevicePart,
  VirtioDeviceType,
  type VirtioNetControl,
  type VirtioState,
} from '../../../src/formats/index.js';

const upTo = (max: number, min = 0) => fc.integer({ min, max });
const u8 = upTo(0xff);
const u16 = upTo(0xffff);
const address = fc.maxSafeNat();
const word = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const bytes = (maxLength: number, minLength = 0) => fc.uint8Array({ minLength, maxLength });
const list = <T>(item: fc.Arbitrary<T>) => fc.array(item, { maxLength: 4 });
const optional = fc.boolean();

const features = fc.array(word, { minLength: 1, maxLength: 3 });
const pciField = fc.constantFrom(...PCI_COMMON_CONFIG_FIELDS.entries()).chain(([offset, { width }]) =>
  fc.record({
    part: fc.constant('PCI_COMMON_CFG' as const),
    optional,
    offset: fc.constant(offset),
    value: width === 8 ? address : fc.integer({ min: 0, max: 2 ** (8 * width) - 1 }),
  }),
);

/** Any one part. */
export const anyDevicePart: fc.Arbitrary<VirtioDevicePart> = fc.oneof(
  fc.record({ part: fc.constantFrom('DEV_FEATURES' as const, 'DRV_FEATURES' as const), optional, features }),
  pciField,
  fc.record({ part: fc.constant('DEVICE_STATUS' as const), optional, status: u8 }),
  fc.record({
    part: fc.constant('VQ_CFG' as const),
    optional,
    queue: u16,
    size: u16,
    vector: u16,
    enabled: u16,
    descriptors: address,
    driver: address,
    device: address,
  }),
  fc.record({
    part: fc.constant('VQ_NOTIFY_CFG' as const),
    optional,
    queue: u16,
    notifyOffset: u16,
    notifyConfigData: u16,
  }),
  fc.record({
    part: fc.constant('opaque' as const),
    optional,
    type: upTo(0xffff, 0x106),
    selector: bytes(8, 8),
    value: bytes(40),
  }),
);

const net: fc.Arbitrary<VirtioNetControl> = fc.record({
  receiveModes: fc.subarray([...NET_RECEIVE_MODES]),
  queuePairs: u16,
  unicast: list(bytes(6, 6)),
  multicast: list(bytes(6, 6)),
  vlans: list(upTo(4095)),
  guestOffloads: word,
  rss: bytes(60),
});

const pci = upTo(130).chain((vectors) =>
  fc.record({
    config: fc.constantFrom(256, 4096).chain((length) => bytes(length, length)),
    msixTable: bytes(16 * vectors, 16 * vectors),
    msixPending: bytes(8 * Math.ceil(vectors / 64), 8 * Math.ceil(vectors / 64)),
  }),
);

/** A part of each kind for each queue, in the order that they have to have. */
function partsOf(queues: number, words: readonly bigint[], status: number): VirtioDevicePart[] {
  const perQueue = Array.from({ length: queues }, (_, queue) => queue);
  return [
    { part: 'DEV_FEATURES', optional: true, features: words },
    { part: 'DRV_FEATURES', optional: false, features: words },
    { part: 'PCI_COMMON_CFG', optional: false, offset: 16, value: status },
    { part: 'DEVICE_STATUS', optional: false, status },
    ...perQueue.map((queue) => ({
      part: 'VQ_CFG' as const,
      optional: false,
      queue,
      size: 256,
      vector: queue,
      enabled: 1,
      descriptors: queue * 4096,
      driver: status,
      device: 2 ** 53 - 1,
    })),
    ...perQueue.map((queue) => ({
      part: 'VQ_NOTIFY_CFG' as const,
      optional: false,
      queue,
      notifyOffset: queue,
      notifyConfigData: status,
    })),
  ];
}

export const anyVirtioState: fc.Arbitrary<VirtioState> = fc
  .record({
    deviceType: fc.constantFrom(...Object.values(VirtioDeviceType), 3),
    queues: upTo(5),
    config: bytes(100),
    words: features,
    status: u8,
    places: fc.array(fc.tuple(u16, u16), { minLength: 5, maxLength: 5 }),
    pci: fc.option(pci),
    net: fc.option(net),
  })
  .map(({ deviceType, queues, config, words, status, places, pci, net }) => ({
    deviceType,
    queues,
    config,
    parts: partsOf(queues, words, status),
    rings: places.slice(0, queues).map(([available, used], queue) => ({ queue, available, used })),
    pci,
    net: deviceType === VirtioDeviceType.net ? net : null,
  }));
