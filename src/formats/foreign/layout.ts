// SPDX-License-Identifier: Apache-2.0
/** Structures of fixed layout, little endian, as tables of their fields. */
import type { FieldMap, FieldValue } from '../fields.js';
import { hex } from './text.js';

export type FieldType = 'u8' | 'u16' | 'u32' | 'u64';
/** Name, type and offset in bytes of each field that is shown. */
export type Layout = readonly (readonly [name: string, type: FieldType, offset: number])[];

export function fieldsOf(layout: Layout, bytes: Buffer, start = 0): FieldMap {
  return Object.fromEntries(
    layout.map(([name, type, offset]) => [name, fieldAt(type, bytes, start + offset)]),
  );
}

/** The integers of one type that lie one after the other in `bytes`. */
export function listOf(type: FieldType, bytes: Buffer): FieldValue[] {
  const width = Number(type.slice(1)) / 8;
  return Array.from({ length: Math.floor(bytes.length / width) }, (_, index) =>
    fieldAt(type, bytes, index * width),
  );
}

function fieldAt(type: FieldType, bytes: Buffer, offset: number): FieldValue {
  switch (type) {
    case 'u8':
      return bytes.readUInt8(offset);
    case 'u16':
      return bytes.readUInt16LE(offset);
    case 'u32':
      return bytes.readUInt32LE(offset);
    case 'u64': {
      const value = u64At(bytes, offset);
      return Number.isSafeInteger(value)
        ? value
        : `0x${hex(bytes.subarray(offset, offset + 8).toReversed())}`;
    }
  }
}

/** Exact below 2^53; from there on no safe integer. */
export function u64At(bytes: Buffer, offset: number): number {
  return Number(bytes.readBigUInt64LE(offset));
}

/** The text up to the first zero byte; undefined if there is anything but printable ASCII in it. */
export function textOf(bytes: Buffer): string | undefined {
  const end = bytes.indexOf(0);
  const text = bytes.toString('latin1', 0, end < 0 ? bytes.length : end);
  return /^[\x20-\x7e]+$/.test(text) ? text : undefined;
}
