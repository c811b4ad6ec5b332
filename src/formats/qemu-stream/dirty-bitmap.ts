// SPDX-License-Identifier: Apache-2.0
/**
 * Dirty bitmaps of block devices: the sections `dirty-bitmap`, made of chunks, the last with EOS.
 *
 *     chunk  flags u8 | be16 | be32, node's name if DEVICE_NAME, bitmap's name if BITMAP_NAME, and by flag:
 *            START be32 granularity, u8 flags | COMPLETE nothing |
 *            BITS be64 first sector, be32 sectors, and unless ZEROES be64 length, bytes
 */
import type { FieldMap } from '../fields.js';
import type { Pull } from '../foreign/pushed-input.js';
import type { SectionContext } from '../foreign/section-context.js';
import { DirtyBitmapFlag } from './constants.js';

/** Bitmaps named in the report. */
const BITMAPS_LISTED = 256;

/** Reads the data of one `dirty-bitmap` section, up to its footer. */
export function* walkDirtyBitmap({ input }: SectionContext, fields: FieldMap): Pull<void> {
  const begun: string[] = [];
  let chunks = 0;
  let node = '';
  let bitmap = '';
  for (;;) {
    const flags = yield* takeFlags(input);
    if (flags & DirtyBitmapFlag.DEVICE_NAME) node = yield* input.countedText();
    if (flags & DirtyBitmapFlag.BITMAP_NAME) bitmap = yield* input.countedText();
    if (flags & DirtyBitmapFlag.START) {
      yield* input.pass(5);
      if (begun.length < BITMAPS_LISTED) begun.push(`${node}/${bitmap}`);
    } else if (flags & DirtyBitmapFlag.BITS) {
      yield* input.pass(12);
      if (!(flags & DirtyBitmapFlag.ZEROES)) {
        yield* input.need(8);
        yield* input.pass(input.u64());
      }
      chunks++;
    }
    if (flags & DirtyBitmapFlag.EOS) break;
  }
  if (begun.length > 0) fields.bitmaps = begun;
  if (chunks > 0) fields.chunks = chunks;
}

/** One byte; two if its highest bit is set; four if that of the second byte is set as well. */
function* takeFlags(input: SectionContext['input']): Pull<number> {
  yield* input.need(1);
  const first = input.u8();
  if (!(first & DirtyBitmapFlag.EXTRA_FLAGS)) return first;
  yield* input.need(1);
  const second = input.u8();
  if (!(second & DirtyBitmapFlag.EXTRA_FLAGS)) return second;
  yield* input.need(2);
  return input.u16();
}
