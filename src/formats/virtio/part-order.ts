// SPDX-License-Identifier: Apache-2.0
/** What virtio 1.4 asks of a list of device parts: order, and which there may be more than one of. */
import { DevicePartType, type VirtioDevicePart } from './device-parts.js';

/** Reasons shown of a list that has many. */
const REASONS_SHOWN = 16;

/**
 * Why these parts cannot be given to a device as they are; empty if they can. The order is that of the table "Device
 * parts order", which is that of the type numbers; parts of types that are not known follow all others.
 */
export function devicePartProblems(parts: readonly VirtioDevicePart[]): string[] {
  const problems = new Set<string>();
  const seen = new Set<string>();
  let highest = 0;
  for (const part of parts) {
    if (problems.size === REASONS_SHOWN) break;
    const name = nameOf(part);
    const type = typeOf(part);
    if (type < highest) problems.add(`${name} comes after a part that it has to precede`);
    highest = Math.max(highest, type);
    if (part.part !== 'opaque' && seen.has(name)) problems.add(`${name} comes twice`);
    seen.add(name);
    if (part.part === 'DEV_FEATURES' && !part.optional) problems.add('DEV_FEATURES is not marked optional');
  }
  return [...problems];
}

function typeOf(part: VirtioDevicePart): number {
  return part.part === 'opaque' ? part.type : DevicePartType[part.part];
}

/** With what tells one of its kind from the next. */
function nameOf(part: VirtioDevicePart): string {
  switch (part.part) {
    case 'PCI_COMMON_CFG':
      return `PCI_COMMON_CFG at ${part.offset}`;
    case 'VQ_CFG':
    case 'VQ_NOTIFY_CFG':
      return `${part.part} of queue ${part.queue}`;
    case 'opaque':
      return `the part of type 0x${part.type.toString(16)}`;
    default:
      return part.part;
  }
}
