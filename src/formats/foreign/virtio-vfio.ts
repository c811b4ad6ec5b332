// SPDX-License-Identifier: Apache-2.0
/**
 * State of a virtio virtual function, from Linux's virtio-vfio-pci (drivers/vfio/pci/virtio/common.h, migrate.c): records as
 * in tagged-records.ts; in practice one, with the device parts as the device gave them.
 */
import { Nesting } from './nested-content.js';
import {
  RECORD_HEADER_LENGTH,
  RecordFlag,
  type RecordKind,
  recordHeaderOf,
  walkRecords,
} from './tagged-records.js';
import { beginsWithDeviceParts, virtioDevicePartsKind } from './virtio-device-parts.js';
import { walkedKind } from './walk-reader.js';

const DEVICE_DATA = 0;

export const virtioVfioKind = walkedKind({
  name: 'virtio-vfio',
  title: 'Linux virtio-vfio-pci device state',
  probeLength: RECORD_HEADER_LENGTH + virtioDevicePartsKind.probeLength,
  matches(first) {
    if (first.length < RECORD_HEADER_LENGTH) return false;
    const { size, flags, tag } = recordHeaderOf(Buffer.from(first));
    if (tag !== DEVICE_DATA || flags > RecordFlag.optional) return false;
    return beginsWithDeviceParts(first.subarray(RECORD_HEADER_LENGTH, RECORD_HEADER_LENGTH + size), size);
  },
  walk(context) {
    const parts = new Nesting([virtioDevicePartsKind], context.nesting.extraction);
    const deviceData: RecordKind = {
      name: 'DEVICE_DATA',
      *walk({ input }, section, size) {
        const content = parts.open('virtio-device-parts.bin', input.offset);
        try {
          yield* input.pass(size, (bytes) => content?.push(bytes));
        } finally {
          const found = content?.finish();
          section.extract = content?.extract ?? null;
          section.content = found?.content ?? null;
          section.first = found?.first ?? null;
        }
      },
    };
    return walkRecords(context, new Map([[DEVICE_DATA, deviceData]]));
  },
});
