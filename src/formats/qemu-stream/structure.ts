// SPDX-License-Identifier: Apache-2.0
/**
 * How the state of one device lies in the stream, from the JSON that QEMU describes it with: fields in their order
 * with their sizes, structures within them, subsections behind them.
 */

/** A device, a structure within it, or a subsection. */
export interface Structure {
  /** Name of QEMU's VMStateDescription; empty if it has none. */
  readonly name: string;
  readonly version: number | null;
  readonly fields: readonly StructureField[];
  readonly subsections: readonly Structure[];
  /** Bytes, subsections included. */
  readonly size: number;
}

export interface StructureField {
  readonly name: string;
  /** QEMU's name of the type, such as `uint32`, `timer`, `struct`. */
  readonly type: string;
  /** Bytes of one element. */
  readonly size: number;
  /** Elements, one after the other. */
  readonly count: number;
  /** What an element is made of; null for a plain value. */
  readonly structure: Structure | null;
}

/** Structures within structures; QEMU's own are not deeper than about 6. */
const DEPTH_MAX = 32;
/** Type, length of the name and version, before the name and the fields of a subsection. */
const SUBSECTION_FRAME = 6;

/** Bytes of a subsection's type, name and version, before its fields. */
export function subsectionHeaderLength(subsection: Structure): number {
  return SUBSECTION_FRAME + Buffer.byteLength(subsection.name);
}

/** The structure that a parsed JSON object describes; undefined if it describes none that can be followed. */
export function structureOf(json: unknown, depth = 0): Structure | undefined {
  if (depth > DEPTH_MAX || !isObject(json)) return undefined;
  const fields = listOf(json.fields, (item) => fieldOf(item, depth));
  const subsections = listOf(json.subsections, (item) => structureOf(item, depth + 1));
  if (fields === undefined || subsections === undefined) return undefined;
  const size =
    fields.reduce((sum, field) => sum + field.size * field.count, 0) +
    subsections.reduce((sum, subsection) => sum + subsectionHeaderLength(subsection) + subsection.size, 0);
  // Devices without a VMStateDescription have their size, and one field that is all of it.
  if (!Number.isSafeInteger(size)) return undefined;
  const name = typeof json.vmsd_name === 'string' ? json.vmsd_name : '';
  return { name, version: countOf(json.version) ?? null, fields, subsections, size };
}

function fieldOf(json: unknown, depth: number): StructureField | undefined {
  if (!isObject(json)) return undefined;
  const size = countOf(json.size);
  const count = json.array_len === undefined ? 1 : countOf(json.array_len);
  if (typeof json.name !== 'string' || size === undefined || count === undefined) return undefined;
  // Some types of fields (`tmp`) describe their parts in place. Lists (`qtailq`) do so too, once for each element and
  // without the marks between them: what does not fill the field is not what the field is made of.
  const parts = structureOf(json.struct ?? json, depth + 1);
  const structure = parts !== undefined && parts.size === size && parts.fields.length > 0 ? parts : null;
  const type = typeof json.type === 'string' ? json.type : 'unknown';
  return { name: json.name, type, size, count, structure };
}

/** All items of a JSON list, which may be missing; undefined if one of them is not as it should be. */
function listOf<T>(json: unknown, itemOf: (item: unknown) => T | undefined): T[] | undefined {
  if (json === undefined) return [];
  if (!Array.isArray(json)) return undefined;
  const items: T[] = [];
  for (const entry of json) {
    const item = itemOf(entry);
    if (item === undefined) return undefined;
    items.push(item);
  }
  return items;
}

function countOf(json: unknown): number | undefined {
  return typeof json === 'number' && Number.isSafeInteger(json) && json >= 0 ? json : undefined;
}

export function isObject(json: unknown): json is { readonly [key: string]: unknown } {
  return typeof json === 'object' && json !== null && !Array.isArray(json);
}
