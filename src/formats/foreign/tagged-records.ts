// SPDX-License-Identifier: Apache-2.0
/**
 * The records that Linux's drivers mlx5-vfio-pci and virtio-vfio-pci write, one after the other, little endian:
 *
 *      0 │ record_size u64 │ flags u32, bit 0 optional │ tag u32 │
 *     16 │ data, record_size bytes │
 *
 * Nothing else: no magic, no version, no end.
 */
import type { FieldMap } from '../fields.js';
import { u64At } from './layout.js';
import type { Pull } from './pushed-input.js';
import { damaged } from './section-context.js';
import type { OpenSection } from './section-tree.js';
import type { WalkContext } from './walk-reader.js';
import { peek, unknownBytes } from './walk-steps.js';

export const RECORD_HEADER_LENGTH = 16;
/** The drivers take no record that is longer. */
const RECORD_SIZE_MAX = 2 ** 32 - 1;

export interface RecordHeader {
  readonly size: number;
  readonly flags: number;
  readonly tag: number;
}

export const RecordFlag = { optional: 1 } as const;

/** @param bytes 16 or more */
export function recordHeaderOf(bytes: Buffer): RecordHeader {
  return { size: u64At(bytes, 0), flags: bytes.readUInt32LE(8), tag: bytes.readUInt32LE(12) };
}

/** What is known of the records with one tag. */
export interface RecordKind {
  readonly name: string;
  /** Reads the data into the record's section. Default: its first bytes are shown. */
  walk?(context: WalkContext, section: OpenSection, size: number): Pull<void>;
}

/** Reads records to the end. */
export function* walkRecords(context: WalkContext, kinds: ReadonlyMap<number, RecordKind>): Pull<void> {
  const { input, tree, fields } = context;
  let records = 0;
  while ((yield* input.reach(1)) > 0) {
    const header = recordHeaderOf(yield* peek(context, RECORD_HEADER_LENGTH));
    const { size, tag } = header;
    if (size > RECORD_SIZE_MAX)
      throw damaged(input.offset, `a record of ${size} bytes is longer than any can be`);
    const kind = kinds.get(tag);
    const section = tree.begin(kind?.name ?? null, input.offset, headerFields(header));
    input.skip(RECORD_HEADER_LENGTH);
    if (kind?.walk === undefined) yield* unknownBytes(context, size);
    else yield* kind.walk(context, section, size);
    fields.records = ++records;
    tree.end(input.offset, true);
  }
}

function headerFields({ size, flags, tag }: RecordHeader): FieldMap {
  const others = (flags & ~RecordFlag.optional) >>> 0;
  return {
    tag,
    optional: (flags & RecordFlag.optional) !== 0,
    ...(others === 0 ? {} : { unknownFlags: others }),
    length: size,
  };
}
