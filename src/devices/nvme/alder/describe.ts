// SPDX-License-Identifier: Apache-2.0
/** What the records of format `org.devstate.nvme.alder` are called and hold, for people. */

import {
  decodeMetadataMap,
  type FieldMap,
  type FieldValue,
  type FormatDescription,
  type MetadataMap,
  type MetadataValue,
  NVME_ALDER,
} from '../../../formats/index.js';
import { AlderRecord } from './state-format.js';

const names = new Map<number, string>(
  Object.entries(AlderRecord).map(([name, type]) => [type, name.toLowerCase()]),
);

export const alderDescription: FormatDescription = {
  uuid: NVME_ALDER.uuid,
  recordName: (type) => names.get(type),
  describe: (type, payload) => (names.has(type) ? fieldsOf(decodeMetadataMap(payload)) : undefined),
};

function fieldsOf(map: MetadataMap): FieldMap {
  return Object.fromEntries(Object.entries(map).map(([name, value]) => [name, fieldOf(value)]));
}

/** Bytes are shown as hexadecimal text. */
function fieldOf(value: MetadataValue): FieldValue {
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex');
  if (Array.isArray(value)) return value.map(fieldOf);
  return typeof value === 'object' ? fieldsOf(value) : value;
}
