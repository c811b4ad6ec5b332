// SPDX-License-Identifier: Apache-2.0
/**
 * The configuration: what both ends must have in common.
 *
 *     be32 length, name of the machine type; then subsections: u8 5, u8 length, name, be32 version, and
 *     configuration/target-page-bits  be32
 *     configuration/capabilities      be32 count, then for each: u8 length, name
 *     configuration/uuid              16 bytes
 */
import type { FieldMap } from '../fields.js';
import type { Pull } from '../foreign/pushed-input.js';
import { damaged, type SectionContext, unsupported } from '../foreign/section-context.js';
import { uuidFromBytes } from '../uuid.js';
import { ElementType } from './constants.js';
import { isPageSize } from './vm-description.js';

const MACHINE_NAME_MAX = 1024;
const CAPABILITIES_MAX = 1024;

/** Reads the configuration behind its type. */
export function* walkConfiguration(context: SectionContext, fields: FieldMap): Pull<void> {
  const { input, tree } = context;
  yield* input.need(4);
  const length = input.u32();
  if (length > MACHINE_NAME_MAX)
    throw damaged(input.offset - 4, `the machine's name is ${length} bytes long`);
  fields.machine = (yield* input.take(length)).toString('utf8');
  while ((yield* input.reach(1)) === 1 && input.view(1)[0] === ElementType.SUBSECTION) {
    const offset = input.offset;
    input.skip(1);
    const name = yield* input.countedText();
    yield* input.need(4);
    const section = tree.begin(name, offset, { version: input.u32() });
    yield* walkSubsection(context, name, offset, section.fields);
    tree.end(input.offset);
  }
}

function* walkSubsection(
  context: SectionContext,
  name: string,
  offset: number,
  fields: FieldMap,
): Pull<void> {
  const { input, stream } = context;
  switch (name) {
    case 'configuration/target-page-bits': {
      yield* input.need(4);
      const bits = input.u32();
      const pageSize = 2 ** bits;
      if (!isPageSize(pageSize)) throw damaged(offset, `pages of 2^${bits} bytes do not exist`);
      stream.pageSize = pageSize;
      fields.pageSize = pageSize;
      return;
    }
    case 'configuration/capabilities': {
      yield* input.need(4);
      const count = input.u32();
      if (count > CAPABILITIES_MAX) throw damaged(offset, `there are ${count} capabilities`);
      const capabilities: string[] = [];
      for (let index = 0; index < count; index++) capabilities.push(yield* input.countedText());
      stream.capabilities = capabilities;
      fields.capabilities = capabilities;
      return;
    }
    case 'configuration/uuid':
      fields.uuid = uuidFromBytes(yield* input.take(16));
      return;
    default:
      throw unsupported(offset, `the subsection ${name} is none that is known, and says no length`);
  }
}
