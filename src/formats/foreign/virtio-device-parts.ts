// SPDX-License-Identifier: Apache-2.0
/** Device parts of virtio 1.4 as a device gives them (see `../virtio/device-parts.ts`), without anything around them. */
import { DevstateError } from '../../errors.js';
import {
  DEVICE_PART_HEADER_LENGTH,
  type DevicePartHeader,
  decodeDevicePart,
  decodeDevicePartHeader,
  devicePartHeaderProblem,
  devicePartName,
} from '../virtio/device-parts.js';
import { devicePartFields } from '../virtio/part-fields.js';
import type { Pull } from './pushed-input.js';
import { damaged } from './section-context.js';
import { hex } from './text.js';
import { type WalkContext, walkedKind } from './walk-reader.js';
import { peek, unknownBytes } from './walk-steps.js';

/** Types that virtio 1.4 leaves to device types end here. */
const TYPES_END = 0x600;
/** A part that is longer is not decoded: only lists of features can be, and none is so long. */
const DECODED_LENGTH_MAX = 1024;
/** Words of features that a device may have, for the recognition: 1.4 uses two. */
const FEATURES_LENGTH_MAX = 64;
const PROBE_LENGTH = 4 * DEVICE_PART_HEADER_LENGTH;

export const virtioDevicePartsKind = walkedKind({
  name: 'virtio-device-parts',
  title: 'virtio 1.4 device parts',
  probeLength: PROBE_LENGTH,
  matches: (first) => beginsWithDeviceParts(first, Number.POSITIVE_INFINITY),
  *walk(context) {
    const { input, fields } = context;
    let parts = 0;
    while ((yield* input.reach(1)) > 0) {
      yield* walkPart(context);
      fields.parts = ++parts;
    }
  },
});

function* walkPart(context: WalkContext): Pull<void> {
  const { input, tree } = context;
  const offset = input.offset;
  const view = yield* peek(context, DEVICE_PART_HEADER_LENGTH);
  const header = sound(offset, () => decodeDevicePartHeader(view));
  const problem = devicePartHeaderProblem(header);
  const name = devicePartName(header.type) ?? null;
  if (problem !== undefined) throw damaged(offset, `a part of type ${name} has ${problem}`);
  const section = tree.begin(name, offset);
  input.skip(DEVICE_PART_HEADER_LENGTH);
  const { type, optional, selector, length } = header;
  if (name !== null && length <= DECODED_LENGTH_MAX) {
    yield* input.need(length);
    const part = sound(offset, () => decodeDevicePart(header, input.view(length)));
    section.fields = devicePartFields(part);
    input.skip(length);
  } else {
    section.fields = { ...(optional ? { optional } : {}), type, selector: hex(selector), length };
    yield* unknownBytes(context, length);
  }
  tree.end(input.offset, true);
}

/** What a codec refuses is damage in the content, at `offset`. */
function sound<T>(offset: number, decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    if (error instanceof DevstateError) throw damaged(offset, error.message);
    throw error;
  }
}

/**
 * Whether these bytes, the first of `size`, are headers and values of parts: the first of a type that every device has,
 * each with the length and selector that its type has. So about 100 bits have to be as they are.
 */
export function beginsWithDeviceParts(first: Uint8Array, size: number): boolean {
  let at = 0;
  while (at + DEVICE_PART_HEADER_LENGTH <= first.length) {
    const header = headerIn(first.subarray(at, at + DEVICE_PART_HEADER_LENGTH));
    if (header === undefined || !isPlausible(header)) return false;
    if (at === 0 && devicePartName(header.type) === undefined) return false;
    at += DEVICE_PART_HEADER_LENGTH + header.length;
    if (at > size) return false;
  }
  return at > 0;
}

function headerIn(bytes: Uint8Array): DevicePartHeader | undefined {
  try {
    return decodeDevicePartHeader(bytes);
  } catch {
    return undefined;
  }
}

function isPlausible(header: DevicePartHeader): boolean {
  const name = devicePartName(header.type);
  if (name === undefined) return header.type > 0x105 && header.type < TYPES_END;
  if (name.endsWith('FEATURES') && header.length > FEATURES_LENGTH_MAX) return false;
  if (name === 'PCI_COMMON_CFG' && header.length > 8) return false;
  return devicePartHeaderProblem(header) === undefined;
}
