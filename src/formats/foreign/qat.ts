// SPDX-License-Identifier: Apache-2.0
/**
 * State of an Intel QAT virtual function, from Linux's qat-vfio-pci (drivers/crypto/intel/qat/qat_common/adf_mstate_mgr.c,
 * adf_gen4_vf_mig.c), little endian. Two blocks, the first of them sent during pre-copy: what the two devices must have in
 * common, and the state. After them, up to 4096 bytes, whatever was in the driver's memory.
 *
 *       0 │ magic u32 │ version u32 │ preamble length u16 │ sections u16 │ size of the sections u32 │
 *         │ section: id, 8 characters │ size u32 │ sub-sections u32 │ data, or sub-sections │ …
 */
import type { FieldMap } from '../fields.js';
import { type FieldType, fieldsOf, type Layout, listOf, textOf } from './layout.js';
import type { Pull } from './pushed-input.js';
import { damaged, unsupported } from './section-context.js';
import { hex } from './text.js';
import { type WalkContext, walkedKind } from './walk-reader.js';
import { peek, structure, unknown, unknownBytes, unused } from './walk-steps.js';

const MAGIC = 0xadf5caea;
const VERSION = 1;
const PREAMBLE_LENGTH = 16;
const PREAMBLE: Layout = [
  ['version', 'u32', 4],
  ['preambleLength', 'u16', 8],
  ['sections', 'u16', 10],
  ['size', 'u32', 12],
];
const BLOCKS = ['setup', 'state'] as const;

const SECTION_HEADER_LENGTH = 16;
const ID_LENGTH = 8;
const DEPTH_MAX = 8;

/** Sections that hold sections. One of a bank of rings is `bnk` with the bank's number, hexadecimal. */
const GROUPS = new Set(['CONFIG', 'GENER', 'MISCBAR', 'ETRBAR', 'EXTBAR']);
const BANK = /^bnk[0-9a-f]{1,4}$/;
/** Sections that hold one integer. */
const INTEGERS: ReadonlyMap<string, FieldType> = new Map([
  ['gencap', 'u32'],
  ['svcmap', 'u16'],
  ['extdc', 'u32'],
  ['iovinit', 'u8'],
  ['compver', 'u8'],
  ['visrc', 'u32'],
  ['vimsk', 'u32'],
  ['vispv', 'u32'],
  ['vimpv', 'u32'],
  ['pf2vm', 'u32'],
  ['vm2pf', 'u32'],
]);
/** Service level agreements of the rings, from the rate limiting. */
const AGREEMENTS = 'sla';
const AGREEMENT_LENGTH = 24;
const AGREEMENTS_MAX = 64;
const AGREEMENT: Layout = [
  ['service', 'u32', 0],
  ['ringPairs', 'u64', 8],
  ['committedRate', 'u32', 16],
  ['peakRate', 'u32', 20],
];
/** A bank's registers: a structure of the driver that is not taken apart here. */
const BANK_REGISTERS = 'mregs';

export const qatKind = walkedKind({
  name: 'qat',
  title: 'Linux qat-vfio-pci device state',
  probeLength: PREAMBLE_LENGTH,
  matches(first) {
    if (first.length < PREAMBLE_LENGTH) return false;
    const bytes = Buffer.from(first);
    return (
      bytes.readUInt32LE() === MAGIC && bytes.readUInt32LE(4) > 0 && bytes.readUInt16LE(8) >= PREAMBLE_LENGTH
    );
  },
  *walk(context) {
    const { input, tree } = context;
    for (const name of BLOCKS) {
      if ((yield* input.reach(4)) < 4 || input.view(4).readUInt32LE() !== MAGIC) break;
      tree.begin(name, input.offset);
      yield* walkBlock(context);
      tree.end(input.offset);
    }
    if (tree.sections.length === 0) throw damaged(input.offset, 'it does not begin with QAT’s magic number');
    yield* unused(context);
  },
});

function* walkBlock(context: WalkContext): Pull<void> {
  const { input } = context;
  const start = input.offset;
  let preamble = { version: 0, length: 0, sections: 0, size: 0 };
  yield* structure(context, 'preamble', PREAMBLE_LENGTH, (bytes) => {
    const [version, length] = [bytes.readUInt32LE(4), bytes.readUInt16LE(8)];
    preamble = { version, length, sections: bytes.readUInt16LE(10), size: bytes.readUInt32LE(12) };
    return fieldsOf(PREAMBLE, bytes);
  });
  const { version, length, sections, size } = preamble;
  if (version > VERSION) throw unsupported(input.offset, `it is of version ${version}, not ${VERSION}`);
  if (length < PREAMBLE_LENGTH) throw damaged(input.offset, `a preamble of ${length} bytes`);
  yield* unknown(context, null, length - PREAMBLE_LENGTH);
  const end = start + length + size;
  yield* walkSections(context, sections, end, 1);
  yield* unknown(context, null, end - input.offset);
}

/** Reads `count` sections, which end at `end` or before. */
function* walkSections(context: WalkContext, count: number, end: number, depth: number): Pull<void> {
  const { input, tree } = context;
  for (let index = 0; index < count; index++) {
    const start = input.offset;
    if (start + SECTION_HEADER_LENGTH > end) {
      throw damaged(
        start,
        `${count} sections do not fit where they are: the header of number ${index} is beyond the end`,
      );
    }
    const view = yield* peek(context, SECTION_HEADER_LENGTH);
    const id = textOf(view.subarray(0, ID_LENGTH));
    const size = view.readUInt32LE(ID_LENGTH);
    const subsections = view.readUInt32LE(ID_LENGTH + 4);
    const sectionEnd = start + SECTION_HEADER_LENGTH + size;
    if (sectionEnd > end) throw damaged(start, `a section of ${size} bytes is longer than what it is in`);
    const known = id !== undefined && isKnown(id);
    const fields: FieldMap = known ? {} : { id: id ?? hex(view.subarray(0, ID_LENGTH)) };
    const section = tree.begin(known ? id : null, start, fields);
    input.skip(SECTION_HEADER_LENGTH);
    if (subsections > 0 && depth < DEPTH_MAX) {
      yield* walkSections(context, subsections, sectionEnd, depth + 1);
      yield* unknown(context, null, sectionEnd - input.offset);
    } else {
      const values = known ? yield* leafValues(context, id, size) : undefined;
      if (values === undefined) yield* unknownBytes(context, size);
      else Object.assign(section.fields, values);
    }
    tree.end(input.offset);
  }
}

function isKnown(id: string): boolean {
  return GROUPS.has(id) || INTEGERS.has(id) || id === AGREEMENTS || id === BANK_REGISTERS || BANK.test(id);
}

/** Reads data whose layout is known; undefined, and nothing is read, if it is not. */
function* leafValues(context: WalkContext, id: string, size: number): Pull<FieldMap | undefined> {
  const { input } = context;
  const integer = INTEGERS.get(id);
  if (integer !== undefined && size === Number(integer.slice(1)) / 8) {
    return { value: listOf(integer, yield* input.take(size))[0]! };
  }
  const agreements = size / AGREEMENT_LENGTH;
  if (id !== AGREEMENTS || !Number.isInteger(agreements) || agreements > AGREEMENTS_MAX) return undefined;
  const bytes = yield* input.take(size);
  return {
    agreements: Array.from({ length: agreements }, (_, index) =>
      fieldsOf(AGREEMENT, bytes, index * AGREEMENT_LENGTH),
    ),
  };
}
