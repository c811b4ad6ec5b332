// SPDX-License-Identifier: Apache-2.0
/** The bytes of a device section, taken apart as its description says. */
import type { FieldMap, FieldValue } from '../fields.js';
import type { SectionTree } from '../foreign/section-tree.js';
import { hex } from '../foreign/text.js';
import { ElementType } from './constants.js';
import { type Structure, type StructureField, subsectionHeaderLength } from './structure.js';

/** Elements shown of a list, and bytes of a buffer. */
const ELEMENTS_SHOWN = 32;
const BYTES_SHOWN = 64;

/** How much may still be said of fields in one report, in characters of JSON. */
export interface FieldBudget {
  left: number;
}

/** Description and bytes do not belong together. */
export class LayoutMismatch extends Error {}

/**
 * Reads the fields of one device section; its subsections become sections of the one that is open in `tree`.
 * @param bytes all of the section's data, `structure.size` of them
 * @param offset of `bytes` in the whole input
 * @throws LayoutMismatch if a subsection is not where the description says
 */
export function readState(
  structure: Structure,
  bytes: Buffer,
  offset: number,
  tree: SectionTree,
  budget: FieldBudget,
): FieldMap {
  checkSubsections(structure, bytes, 0);
  const reader = new StateReader(bytes, budget);
  const values = reader.fields(structure);
  const list = (parent: Structure) => {
    for (const subsection of parent.subsections) {
      const section = tree.begin(subsection.name, offset + reader.at);
      reader.at += subsectionHeaderLength(subsection);
      section.fields = { version: subsection.version, state: reader.fields(subsection) };
      list(subsection);
      tree.end(offset + reader.at);
    }
  };
  list(structure);
  return values;
}

/** Refuses bytes that have no subsection header where there has to be one; returns where the structure ends. */
function checkSubsections(structure: Structure, bytes: Buffer, start: number): number {
  let at = structure.fields.reduce((sum, field) => sum + field.size * field.count, start);
  for (const subsection of structure.subsections) {
    const header = subsectionHeaderLength(subsection);
    const name = Buffer.from(subsection.name);
    const fits =
      at + header <= bytes.length &&
      bytes[at] === ElementType.SUBSECTION &&
      bytes[at + 1] === name.length &&
      name.equals(bytes.subarray(at + 2, at + 2 + name.length));
    if (!fits) throw new LayoutMismatch(subsection.name);
    at = checkSubsections(subsection, bytes, at + header);
  }
  return at;
}

class StateReader {
  at = 0;
  readonly #bytes: Buffer;
  readonly #budget: FieldBudget;

  constructor(bytes: Buffer, budget: FieldBudget) {
    this.#bytes = bytes;
    this.#budget = budget;
  }

  /** The fields of a structure, without its subsections. */
  fields(structure: Structure): FieldMap {
    const values = new Map<string, FieldValue>();
    let omitted = 0;
    for (const field of structure.fields) {
      const end = this.at + field.size * field.count;
      if (this.#budget.left <= 0) omitted++;
      else if (field.type !== 'unused_buffer') this.#add(values, field);
      this.at = end;
    }
    if (omitted > 0) values.set('fieldsOmitted', omitted);
    return Object.fromEntries(values);
  }

  #add(values: Map<string, FieldValue>, field: StructureField): void {
    const value = field.count === 1 ? this.#counted(this.#element(field)) : this.#list(field);
    this.#budget.left -= field.name.length + 4;
    // A list whose elements differ in size is described in runs of equal ones, under one name.
    const before = values.get(field.name);
    if (before === undefined) values.set(field.name, value);
    else values.set(field.name, [before, value].flat());
  }

  #list(field: StructureField): FieldValue {
    const { type, count, size } = field;
    if (size === 1 && type === 'uint8') return this.#counted(this.#buffer(count));
    const shown = Math.min(count, ELEMENTS_SHOWN);
    const values: FieldValue[] = [];
    for (let index = 0; index < shown && this.#budget.left > 0; index++) {
      const end = this.at + size;
      values.push(this.#counted(this.#element(field)));
      this.at = end;
    }
    if (values.length < count) values.push(`… ${count - values.length} more`);
    return values;
  }

  /** Takes what a value needs, apart from values within it, off the budget. */
  #counted(value: FieldValue): FieldValue {
    this.#budget.left -= typeof value === 'string' ? value.length + 4 : 6;
    return value;
  }

  #element({ type, size, structure }: StructureField): FieldValue {
    if (structure !== null) return this.#structure(structure);
    // `equal` and `le` (less or equal) are what the destination checks.
    const integer = /^(u?)int(8|16|32|64)( equal| le)?$/.exec(type);
    if (integer !== null && Number(integer[2]) === size * 8) {
      return this.#integer(size, integer[1] === '');
    }
    if (type === 'bool' && size === 1) return this.#bytes[this.at] !== 0;
    if (type === 'nullptr') return null;
    if (type === 'timer' && size === 8) {
      const expires = this.#integer(size, false);
      return expires === '0xffffffffffffffff' ? null : expires;
    }
    if (type === 'buffer' || type === 'bitmap') return this.#buffer(size);
    return { type, size, bytes: this.#counted(this.#buffer(size)) };
  }

  /** Fields, and the subsections of a structure within a structure beside them. */
  #structure(structure: Structure): FieldMap {
    const values = this.fields(structure);
    const subsections = structure.subsections.map((subsection): [string, FieldValue] => {
      this.at += subsectionHeaderLength(subsection);
      return [subsection.name, this.#structure(subsection)];
    });
    return subsections.length === 0 ? values : { ...values, ...Object.fromEntries(subsections) };
  }

  /** A number, or hexadecimal text beyond 2^53. */
  #integer(size: number, signed: boolean): FieldValue {
    const { at } = this;
    const bytes = this.#bytes;
    if (size < 8) return signed ? bytes.readIntBE(at, size) : bytes.readUIntBE(at, size);
    const value = signed ? bytes.readBigInt64BE(at) : bytes.readBigUInt64BE(at);
    const number = Number(value);
    if (Number.isSafeInteger(number)) return number;
    return `0x${BigInt.asUintN(64, value).toString(16).padStart(16, '0')}`;
  }

  #buffer(size: number): string {
    const shown = hex(this.#bytes.subarray(this.at, this.at + Math.min(size, BYTES_SHOWN)));
    return size > BYTES_SHOWN ? `${shown}… (${size} bytes)` : shown;
  }
}
