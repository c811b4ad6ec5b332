// SPDX-License-Identifier: Apache-2.0
/**
 * State of an NVIDIA ConnectX virtual function, from Linux's mlx5-vfio-pci (drivers/vfio/pci/mlx5/cmd.h, main.c): records
 * as in tagged-records.ts. Those with the device's data are its firmware's affair. The driver's first record is one of
 * STOP_COPY_SIZE, and that is what such a stream is recognised by; that of earlier drivers, which wrote device data at
 * once, with a record's header or without, is not.
 */
import { listOf } from './layout.js';
import {
  RECORD_HEADER_LENGTH,
  RecordFlag,
  type RecordKind,
  recordHeaderOf,
  walkRecords,
} from './tagged-records.js';
import { walkedKind } from './walk-reader.js';
import { unknownBytes } from './walk-steps.js';

const Tag = { FW_DATA: 0, STOP_COPY_SIZE: 1 } as const;
const STOP_COPY_SIZE_LENGTH = 8;

const RECORDS: ReadonlyMap<number, RecordKind> = new Map([
  [Tag.FW_DATA, { name: 'FW_DATA' }],
  [
    Tag.STOP_COPY_SIZE,
    {
      name: 'STOP_COPY_SIZE',
      *walk(context, section, size) {
        if (size !== STOP_COPY_SIZE_LENGTH) return yield* unknownBytes(context, size);
        section.fields.stopCopySize = listOf('u64', yield* context.input.take(size))[0]!;
      },
    } satisfies RecordKind,
  ],
]);

export const mlx5Kind = walkedKind({
  name: 'mlx5',
  title: 'Linux mlx5-vfio-pci device state',
  probeLength: RECORD_HEADER_LENGTH,
  matches(first) {
    if (first.length < RECORD_HEADER_LENGTH) return false;
    const { size, flags, tag } = recordHeaderOf(Buffer.from(first));
    return size === STOP_COPY_SIZE_LENGTH && flags === RecordFlag.optional && tag === Tag.STOP_COPY_SIZE;
  },
  walk: (context) => walkRecords(context, RECORDS),
});
