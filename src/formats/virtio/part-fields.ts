// SPDX-License-Identifier: Apache-2.0
/** A device part for people: its values by name. */
import type { FieldMap } from '../fields.js';
import { PCI_COMMON_CONFIG_FIELDS, type VirtioDevicePart } from './device-parts.js';

/** Bytes shown of a part whose layout is not known. */
const FIRST_BYTES = 16;

export function devicePartFields({ optional, ...part }: VirtioDevicePart): FieldMap {
  const flags = optional ? { optional } : {};
  switch (part.part) {
    case 'DEV_FEATURES':
    case 'DRV_FEATURES':
      return { ...flags, features: part.features.map((word) => `0x${word.toString(16).padStart(16, '0')}`) };
    case 'PCI_COMMON_CFG':
      return { ...flags, field: PCI_COMMON_CONFIG_FIELDS.get(part.offset)?.name ?? null, value: part.value };
    case 'opaque':
      return {
        ...flags,
        type: part.type,
        selector: Buffer.from(part.selector).toString('hex'),
        length: part.value.length,
        first: Buffer.from(part.value.subarray(0, FIRST_BYTES)).toString('hex'),
      };
    default: {
      const { part: _, ...values } = part;
      return { ...flags, ...values };
    }
  }
}
