// SPDX-License-Identifier: Apache-2.0
/**
 * State of helper processes: the section of QEMU's object `dbus-vmstate`.
 *
 *     be32 length of all that follows
 *     be32 number of helpers, then for each: be32 length, its Id; be32 length, what its Save() returned
 *     zeros: QEMU sends its buffer with the memory that it had in reserve
 *
 * A helper whose Save() failed is counted, and missing.
 */
import type { FieldMap } from '../fields.js';
import type { Pull, PushedInput } from '../foreign/pushed-input.js';
import { damaged, type SectionContext } from '../foreign/section-context.js';
import { extractName, firstBytes } from '../foreign/text.js';

/** QEMU's own bound. */
const ID_LENGTH_MAX = 255;

export function isDbusVmstateSection(name: string): boolean {
  return name === 'dbus-vmstate' || name.endsWith('/dbus-vmstate');
}

/** Reads the section's data, up to its footer. */
export function* walkDbusVmstate(context: SectionContext, fields: FieldMap): Pull<void> {
  const { input, tree } = context;
  yield* input.need(4);
  const length = input.u32();
  const end = input.offset + length;
  yield* needWithin(input, 4, end);
  const helpers = input.u32();
  let found = 0;
  while (found < helpers && (yield* walkHelper(context, end))) found++;
  fields.helpers = helpers;
  if (found < helpers) fields.missing = helpers - found;
  if (input.offset === end) return;
  const padding = tree.begin('padding', input.offset);
  let zero = true;
  yield* input.pass(end - input.offset, (bytes) => {
    if (zero && bytes.some((byte) => byte !== 0)) {
      zero = false;
      padding.first = firstBytes(bytes);
    }
  });
  padding.fields = { zero };
  tree.end(end);
}

/** Reads what one helper saved; false if there is padding instead. */
function* walkHelper(context: SectionContext, end: number): Pull<boolean> {
  const { input, tree, nesting } = context;
  const offset = input.offset;
  if (end - offset < 4) return false;
  yield* input.need(4);
  const idLength = input.view(4).readUInt32BE();
  if (idLength === 0) return false;
  if (idLength > ID_LENGTH_MAX) throw damaged(offset, `a helper's Id is ${idLength} bytes long`);
  input.skip(4);
  yield* needWithin(input, idLength + 4, end);
  const id = (yield* input.take(idLength)).toString('utf8');
  yield* input.need(4);
  const length = input.u32();
  if (length > end - input.offset)
    throw damaged(offset, `the state of the helper ${id} goes beyond the section`);
  const section = tree.begin(id, offset, { length });
  const content = nesting.open(extractName('dbus-vmstate', id, 'bin'), input.offset);
  section.extract = content?.extract ?? null;
  try {
    yield* input.pass(length, (bytes) => content?.push(bytes));
  } finally {
    Object.assign(section, content?.finish());
  }
  tree.end(input.offset);
  return true;
}

function* needWithin(input: PushedInput, length: number, end: number): Pull<void> {
  if (input.offset + length > end)
    throw damaged(input.offset, 'the section ends within the list of its helpers');
  yield* input.need(length);
}
