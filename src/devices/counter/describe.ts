// SPDX-License-Identifier: Apache-2.0
/** What the records of format `org.devstate.counter` are called and hold, for people. */

import { COUNTER, type FieldMap, type FormatDescription } from '../../formats/index.js';
import { CounterRecord, decodeState } from './state.js';

const names = new Map<number, string>(
  Object.entries(CounterRecord).map(([name, type]) => [type, name.toLowerCase()]),
);

export const counterDescription: FormatDescription = {
  uuid: COUNTER.uuid,
  recordName: (type) => names.get(type),
  describe,
};

function describe(type: number, payload: Uint8Array): FieldMap | undefined {
  if (type === CounterRecord.STATE) {
    const { value, expected, desired, ...rest } = decodeState(payload);
    return { value: String(value), expected: String(expected), desired: String(desired), ...rest };
  }
  return type === CounterRecord.CONFIG ? { config: Buffer.from(payload).toString('hex') } : undefined;
}
