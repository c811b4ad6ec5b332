// SPDX-License-Identifier: Apache-2.0
/** What the records of format `org.devstate.sample` are called and hold, for people. */

import { createHash } from 'node:crypto';
import { type FieldMap, type FormatDescription, SAMPLE } from '../../formats/index.js';
import { decodePage, decodeTimer, SampleRecord } from './state.js';

const names = new Map<number, string>(
  Object.entries(SampleRecord).map(([name, type]) => [type, name.toLowerCase()]),
);

export const sampleDescription: FormatDescription = {
  uuid: SAMPLE.uuid,
  recordName: (type) => names.get(type),
  describe,
};

function describe(type: number, payload: Uint8Array): FieldMap | undefined {
  if (type === SampleRecord.PAGE) {
    const { index, content } = decodePage(payload);
    return { index, sha256: createHash('sha256').update(content).digest('hex') };
  }
  if (type === SampleRecord.TIMER) {
    const { second, armed, interrupt } = decodeTimer(payload);
    return { second: String(second), armed, interrupt };
  }
  return type === SampleRecord.CONFIG ? { config: Buffer.from(payload).toString('hex') } : undefined;
}
