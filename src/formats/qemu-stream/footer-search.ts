// SPDX-License-Identifier: Apache-2.0
/**
 * The end of a section whose length is not stated: its footer (u8 0x7e, be32 the section's id) where something follows
 * that can follow a section. By chance, that is there once in 2^50 bytes or so.
 */

import type { Pull, PushedInput } from '../foreign/pushed-input.js';
import { damaged } from '../foreign/section-context.js';
import { COMMAND_NAMES, ElementType, FOOTER_LENGTH, SECTION_KINDS } from './constants.js';

/** Type, id, and a name of up to 255 bytes with its length. */
const NEXT_HEADER_MAX = 1 + 4 + 1 + 255;
/** What is searched at a time. */
const WINDOW = 1 << 16;

export interface FooterSearch {
  readonly id: number;
  /** Ids of the sections so far. */
  readonly known: { has(id: number): boolean };
  /** Offset in the whole input where the section must have ended. */
  readonly limit: number;
}

/**
 * Reads over a section's data, up to its footer. StreamDefect if it has none.
 * @param onData gets the data as it passes
 */
export function* passToFooter(
  input: PushedInput,
  search: FooterSearch,
  onData: (bytes: Uint8Array) => void,
): Pull<void> {
  const footer = Buffer.alloc(FOOTER_LENGTH);
  footer.writeUInt8(ElementType.SECTION_FOOTER);
  footer.writeUInt32BE(search.id, 1);
  for (;;) {
    const wanted = Math.min(WINDOW, search.limit - input.offset);
    const reached = yield* input.reach(wanted);
    // No more will come than is here: a header may be cut short.
    const last = reached < WINDOW;
    const window = input.view(reached);
    let from = 0;
    let end = -1;
    for (;;) {
      const at = window.indexOf(footer, from);
      if (at < 0) break;
      const next = window.subarray(at + FOOTER_LENGTH, at + FOOTER_LENGTH + NEXT_HEADER_MAX);
      if (!last && at > 0 && next.length < NEXT_HEADER_MAX) {
        // Looked at again, with what comes.
        from = at;
        end = at;
        break;
      }
      if (canFollow(next, search.known)) {
        onData(window.subarray(0, at));
        input.skip(at);
        return;
      }
      from = at + 1;
    }
    const passed = end >= 0 ? end : Math.max(0, reached - (FOOTER_LENGTH - 1));
    onData(window.subarray(0, passed));
    input.skip(passed);
    if (last) {
      yield* input.need(FOOTER_LENGTH);
      throw damaged(input.offset, 'a section has no footer within the packaged stream that it is in');
    }
  }
}

/** Whether these bytes, the first of what follows a section, can be the beginning of an element, or the end. */
function canFollow(next: Buffer, known: FooterSearch['known']): boolean {
  const type = next[0];
  switch (type) {
    case undefined:
      return true;
    case ElementType.EOF:
      return next.length === 1 || next[1] === ElementType.VMDESCRIPTION;
    case ElementType.COMMAND:
      return next.length < 3 || next.readUInt16BE(1) < COMMAND_NAMES.length;
    case ElementType.SECTION_PART:
    case ElementType.SECTION_END:
      return next.length < 5 || known.has(next.readUInt32BE(1));
    default:
      if (!SECTION_KINDS.has(type)) return false;
      return next.length < 6 || isName(next.subarray(6, 6 + next[5]!));
  }
}

function isName(bytes: Buffer): boolean {
  return bytes.length > 0 && bytes.every((byte) => byte >= 0x20 && byte < 0x7f);
}
