// SPDX-License-Identifier: Apache-2.0
/** Named values for people and for JSON: what inspection says of a payload whose format is known. */

/** A value that JSON can hold. Numbers beyond 2^53 and bytes are given as hexadecimal text. */
export type FieldValue = string | number | boolean | null | FieldValue[] | FieldMap;
/** Named values; their order is the order of display. */
export type FieldMap = { [name: string]: FieldValue };
