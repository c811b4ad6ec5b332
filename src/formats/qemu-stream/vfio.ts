// SPDX-License-Identifier: Apache-2.0
/**
 * State of VFIO devices: the sections whose names end in `vfio`, made of be64 tags.
 *
 *     START       DEV_SETUP_STATE, END_OF_STATE
 *     PART, END   DEV_DATA_STATE be64 length, data; …; then END_OF_STATE or DEV_INIT_DATA_SENT
 *     FULL        DEV_CONFIG_STATE, PCI state without a length, END_OF_STATE; or DEV_CONFIG_LOAD_READY alone
 *
 * What the device's driver gave and will be given is the data of all its sections, one after the other.
 */

import type { NestedContent } from '../foreign/nested-content.js';
import type { Pull } from '../foreign/pushed-input.js';
import { damaged, type SectionContext } from '../foreign/section-context.js';
import type { OpenSection } from '../foreign/section-tree.js';
import { extractName, firstBytes } from '../foreign/text.js';
import { VFIO_TAG_HIGH, VfioTag } from './constants.js';

const TAG_LENGTH = 8;
/**
 * The data of several devices comes interleaved, so that a reader of each holds bytes. One may be large; of this many
 * in all, the others are looked into up to this length. They are extracted whatever their length.
 */
const DEVICES_READ = 16;
const LENGTH_READ = 1 << 20;
const TAG_NAMES: ReadonlyMap<number, string> = new Map(
  Object.entries(VfioTag).map(([name, tag]) => [tag, name]),
);

export function isVfioSection(name: string): boolean {
  return name === 'vfio' || name.endsWith('/vfio');
}

/** The data of one device, gathered from its sections. */
interface DeviceData {
  readonly content: NestedContent | undefined;
  /** The section that had data last. */
  last: OpenSection;
  pieces: number;
  length: number;
}

/** All VFIO devices of a stream. */
export class VfioDevices {
  readonly #data = new Map<number, DeviceData>();

  /** Reads the data of a START, PART or END section, up to its footer. */
  *walk(context: SectionContext, section: OpenSection, id: number): Pull<void> {
    const { input, tree } = context;
    for (;;) {
      const offset = input.offset;
      yield* input.need(TAG_LENGTH);
      const high = input.u32();
      const tag = input.u32();
      const name = high === VFIO_TAG_HIGH ? TAG_NAMES.get(tag) : undefined;
      if (name === undefined || tag === VfioTag.DEV_CONFIG_STATE) {
        throw damaged(
          offset,
          `a vfio section has the tag 0x${(high * 2 ** 32 + tag).toString(16)} where none such can be`,
        );
      }
      const entry = tree.begin(name, offset);
      if (tag === VfioTag.DEV_DATA_STATE) {
        yield* input.need(8);
        const length = input.u64();
        entry.fields = { length };
        yield* this.#passData(context, section, id, length);
      }
      tree.end(input.offset);
      if (tag !== VfioTag.DEV_DATA_STATE && tag !== VfioTag.DEV_SETUP_STATE) return;
    }
  }

  *#passData(context: SectionContext, section: OpenSection, id: number, length: number): Pull<void> {
    const data = this.#data.get(id) ?? this.#open(context, section, id);
    const { content } = data;
    data.last = section;
    data.pieces++;
    data.length += length;
    yield* context.input.pass(length, (bytes) => content?.push(bytes));
  }

  #open({ nesting }: SectionContext, section: OpenSection, id: number): DeviceData {
    const { size } = this.#data;
    const limit = size === 0 ? Number.POSITIVE_INFINITY : size < DEVICES_READ ? LENGTH_READ : 0;
    const content = nesting.open(extractName(section.name ?? '', 'bin'), 0, limit);
    const data = { content, last: section, pieces: 0, length: 0 };
    this.#data.set(id, data);
    return data;
  }

  /** No more sections come: each device's data is reported in its last section. Offsets in it count from its start. */
  finish(): void {
    for (const { content, last, pieces, length } of this.#data.values()) {
      const found = content?.finish();
      last.extract = content?.extract ?? null;
      last.content = found?.content ?? null;
      last.fields.deviceData = { pieces, length, ...(found?.first ? { first: found.first } : {}) };
    }
    this.#data.clear();
  }
}

/** Tells what a FULL section's data is. Nothing, if it is not as above. */
export function describeVfioConfig(context: SectionContext, data: Buffer, offset: number): void {
  const { tree } = context;
  const tagAt = (at: number) =>
    at >= 0 && at + TAG_LENGTH <= data.length && data.readUInt32BE(at) === VFIO_TAG_HIGH
      ? data.readUInt32BE(at + 4)
      : 0;
  const end = data.length - TAG_LENGTH;
  const first = TAG_NAMES.get(tagAt(0));
  const last = TAG_NAMES.get(tagAt(end));
  if (first === undefined || last === undefined) return;
  if (end > 0) {
    const section = tree.begin(first, offset, { length: end - TAG_LENGTH });
    section.first = firstBytes(data.subarray(TAG_LENGTH, end));
    tree.end(offset + end);
  }
  tree.begin(last, offset + end);
  tree.end(offset + data.length);
}
