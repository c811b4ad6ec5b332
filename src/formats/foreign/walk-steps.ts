// SPDX-License-Identifier: Apache-2.0
/** Steps that the walks over several kinds have in common. Each makes one section. */
import type { FieldMap } from '../fields.js';
import type { Pull } from './pushed-input.js';
import { FIRST_BYTES, firstBytes, hex } from './text.js';
import type { WalkContext } from './walk-reader.js';

/** A structure of `length` bytes, all held at once. What `describe` throws ends the walk before the structure. */
export function* structure(
  { input, tree }: WalkContext,
  name: string,
  length: number,
  describe: (bytes: Buffer) => FieldMap,
): Pull<void> {
  const section = tree.begin(name, input.offset);
  yield* input.need(length);
  section.fields = describe(input.view(length));
  input.skip(length);
  tree.end(input.offset);
}

/** The next bytes, that stay unread; valid until the next suspension. What is left of them at the end is a section without a name. */
export function* peek({ input, tree }: WalkContext, length: number): Pull<Buffer> {
  const reached = yield* input.reach(length);
  if (reached < length) {
    tree.begin(null, input.offset).first = firstBytes(input.view(reached));
    yield* input.need(length);
  }
  return input.view(length);
}

/** Bytes of which nothing more is known than what they are for; null: not even that. */
export function* unknown(context: WalkContext, name: string | null, length: number): Pull<void> {
  if (length === 0) return;
  const { input, tree } = context;
  tree.begin(name, input.offset);
  yield* unknownBytes(context, length);
  tree.end(input.offset);
}

/** Reads over bytes; the section that is open shows the first ones. */
export function* unknownBytes({ input, tree }: WalkContext, length: number): Pull<void> {
  const section = tree.innermost!;
  let first = Buffer.alloc(0);
  yield* input.pass(length, (bytes) => {
    if (first.length === FIRST_BYTES) return;
    first = Buffer.concat([first, bytes.subarray(0, FIRST_BYTES - first.length)]);
    section.first = hex(first);
  });
}

/** All that is left, which means nothing: a file or a region is longer than what is in it. */
export function* unused({ input, tree }: WalkContext): Pull<void> {
  if ((yield* input.reach(1)) === 0) return;
  const section = tree.begin('unused', input.offset);
  let first = Buffer.alloc(0);
  let zero = true;
  do {
    yield* input.pass(input.available, (bytes) => {
      first = Buffer.concat([first, bytes.subarray(0, FIRST_BYTES - first.length)]);
      zero &&= isZero(bytes);
    });
  } while ((yield* input.reach(1)) > 0);
  if (!zero) section.first = hex(first);
  tree.end(input.offset);
}

/** Compared with itself, shifted by one: as fast as memory can be read. */
function isZero(bytes: Uint8Array): boolean {
  return (
    bytes.length === 0 || (bytes[0] === 0 && Buffer.compare(bytes.subarray(1), bytes.subarray(0, -1)) === 0)
  );
}
