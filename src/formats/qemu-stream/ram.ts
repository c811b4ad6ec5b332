// SPDX-License-Identifier: Apache-2.0
/**
 * Guest memory: the sections `ram`.
 *
 *     START  be64 total | MEM_SIZE, then for each block: its name (length u8, text), its length be64 …, then items
 *     items  be64 page address | flags, the block's name unless CONTINUE, and by flag:
 *            ZERO u8 | PAGE the page | XBZRLE u8 1, be16 length, bytes | COMPRESS_PAGE be32 length, bytes
 *            MULTIFD_FLUSH nothing | EOS nothing, and the section is over
 *
 * The pages of a `multifd` migration go over channels of their own; those of a file with `mapped-ram` lie in the file
 * behind their block's name, at their address, with holes between them.
 */
import type { FieldMap } from '../fields.js';
import type { Pull } from '../foreign/pushed-input.js';
import { damaged, type SectionContext, unsupported } from '../foreign/section-context.js';
import { ENCODING_FLAG_XBZRLE, RamFlag } from './constants.js';
import { isPageSize } from './vm-description.js';

const ITEM = RamFlag.ZERO | RamFlag.PAGE | RamFlag.XBZRLE | RamFlag.COMPRESS_PAGE;
/** Memory blocks named in the report. */
const BLOCKS_LISTED = 256;
/** u32 version, u64 page size, u64 offset of the bitmap, u64 offset of the pages. */
const MAPPED_HEADER_LENGTH = 28;

interface Counts {
  pages: number;
  zeroPages: number;
  xbzrlePages: number;
  compressedPages: number;
  multifdFlushes: number;
}

/** Reads the data of one `ram` section, up to its footer. */
export function* walkRam(context: SectionContext, fields: FieldMap): Pull<void> {
  const { input } = context;
  const flagsMask = context.stream.pageSize - 1;
  const counts: Counts = { pages: 0, zeroPages: 0, xbzrlePages: 0, compressedPages: 0, multifdFlushes: 0 };
  try {
    for (;;) {
      if (input.available < 8) yield* input.need(8);
      const offset = input.offset;
      const high = input.u32();
      const low = input.u32();
      const flags = low & flagsMask;
      if (flags & RamFlag.HOOK)
        throw unsupported(offset, 'memory was migrated over RDMA, which leaves no pages here');
      if (flags & RamFlag.MEM_SIZE) {
        yield* walkBlocks(context, fields, high * 2 ** 32 + low - flags);
      } else if (flags & ITEM) {
        if (!(flags & RamFlag.CONTINUE)) yield* input.countedText();
        yield* passPage(context, flags, counts);
      } else if (flags === RamFlag.EOS) return;
      else if (flags === RamFlag.MULTIFD_FLUSH) counts.multifdFlushes++;
      else throw damaged(offset, `a memory page has the flags 0x${flags.toString(16)}, which do not exist`);
    }
  } finally {
    for (const [name, count] of Object.entries(counts)) if (count > 0) fields[name] = count;
  }
}

function* passPage({ input, stream }: SectionContext, flags: number, counts: Counts): Pull<void> {
  let length = stream.pageSize;
  if (flags & RamFlag.ZERO) {
    counts.zeroPages++;
    length = 1;
  } else if (flags & RamFlag.PAGE) counts.pages++;
  else if (flags & RamFlag.XBZRLE) {
    const offset = input.offset;
    yield* input.need(3);
    if (input.u8() !== ENCODING_FLAG_XBZRLE)
      throw damaged(offset, 'an XBZRLE page has an encoding that does not exist');
    length = input.u16();
    counts.xbzrlePages++;
  } else {
    yield* input.need(4);
    length = input.u32();
    counts.compressedPages++;
  }
  if (input.available >= length) input.skip(length);
  else yield* input.pass(length);
}

/** The list of memory blocks, whose lengths add up to `total`. */
function* walkBlocks(context: SectionContext, fields: FieldMap, total: number): Pull<void> {
  const { input, tree, stream } = context;
  const mapped = stream.capabilities.includes('mapped-ram');
  const blocks = new Map<string, number>();
  let count = 0;
  for (let left = total; left > 0; count++) {
    const offset = input.offset;
    const name = yield* input.countedText();
    yield* input.need(8);
    const length = input.u64();
    if (length > left) throw damaged(offset, `the memory block ${name} is larger than all blocks together`);
    left -= length;
    if (blocks.size < BLOCKS_LISTED) blocks.set(name, length);
    if (stream.postcopy) yield* passBlockPageSize(context);
    // Its address in the guest's memory.
    if (stream.capabilities.includes('x-ignore-shared')) yield* input.pass(8);
    if (mapped) {
      const block = tree.begin(name, offset);
      yield* passMappedBlock(context, block.fields, length);
      tree.end(input.offset);
    }
  }
  fields.bytes = total;
  fields.blocks = Object.fromEntries(blocks);
  if (count > blocks.size) fields.blocksOmitted = count - blocks.size;
}

/**
 * The page size of a block, be64, which is there if post-copy is possible and it is not the largest one of all blocks.
 * What could be there instead has other bytes: a name begins with its length, and the items' flags are below 1 KiB.
 */
function* passBlockPageSize({ input }: SectionContext): Pull<void> {
  if ((yield* input.reach(8)) < 8) return;
  const bytes = input.view(8);
  const high = bytes.readUInt32BE(0);
  const low = bytes.readUInt32BE(4);
  const isSize = high === 0 ? low >= 1 << 10 && (low & (low - 1)) === 0 : low === 0 && high < 1 << 8;
  if (isSize) input.skip(8);
}

function* passMappedBlock({ input }: SectionContext, fields: FieldMap, length: number): Pull<void> {
  const offset = input.offset;
  yield* input.need(MAPPED_HEADER_LENGTH);
  const version = input.u32();
  if (version !== 1) throw unsupported(offset, `memory is mapped in a layout of version ${version}, not 1`);
  const pageSize = input.u64();
  const bitmapOffset = input.u64();
  const pagesOffset = input.u64();
  Object.assign(fields, { length, pageSize, bitmapOffset, pagesOffset });
  // Memory that is not in the file, as both ends share it.
  if (bitmapOffset === 0 && pagesOffset === 0) return;
  // Both count from the start of the file, wherever the stream begins in it.
  const position = input.offset;
  const sound = isPageSize(pageSize) && bitmapOffset >= position && pagesOffset >= bitmapOffset;
  if (!sound || !Number.isSafeInteger(pagesOffset + length)) {
    throw damaged(offset, 'a memory block is said to lie in the file where it cannot be');
  }
  yield* input.pass(pagesOffset + length - position);
}
