// SPDX-License-Identifier: Apache-2.0
/** Format `org.devstate.nvme`: states ↔ records, and what is not a state. */

import fc from 'fast-check';
import t from 'tap';
import { DevstateError } from '../../../src/errors.js';
import {
  decodeNvmeState,
  encodeNvmeState,
  type FormatRecord,
  nvmeDescription,
  nvmeValues,
} from '../../../src/formats/index.js';
import { Schema } from '../../../src/formats/protobuf/schema.js';
import { anyNvmeState } from './arbitrary.js';

const [SAMPLE] = fc.sample(anyNvmeState, { numRuns: 1, seed: 7 });
const sample = SAMPLE!;

/** The records with the payload of one of them replaced. */
function withPayload(type: number, payload: Uint8Array): FormatRecord[] {
  return encodeNvmeState(sample).map((record) => (record.type === type ? { ...record, payload } : record));
}

t.test('property: a state is what its records say, and its values', async (t) => {
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(anyNvmeState, (state) => {
        const records = encodeNvmeState(state);
        const decoded = decodeNvmeState(records);
        const again = encodeNvmeState(decoded);
        const same = again.every(({ payload }, i) => Buffer.compare(payload, records[i]!.payload) === 0);
        const values = nvmeValues.toValues(records);
        return (
          same && JSON.stringify(decodeNvmeState(nvmeValues.toRecords(values))) === JSON.stringify(decoded)
        );
      }),
      { numRuns: 100 },
    ),
  );
  t.same(decodeNvmeState(encodeNvmeState(sample)), sample);
});

t.test('property: arbitrary bytes are refused or are a state', async (t) => {
  const types = encodeNvmeState(sample).map(({ type }) => type);
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(fc.constantFrom(...types), fc.uint8Array({ maxLength: 200 }), (type, payload) => {
        try {
          decodeNvmeState(withPayload(type, payload));
        } catch (error) {
          return error instanceof DevstateError && error.code === 'DEVSTATE_E_STATE_RECORD';
        }
        return true;
      }),
      { numRuns: 1000 },
    ),
  );
});

t.test('what is missing, twice, or unknown is named', async (t) => {
  const records = encodeNvmeState(sample);
  const without = (type: number) => records.filter((record) => record.type !== type);
  t.throws(() => decodeNvmeState(without(0x10002)), { message: /no record Registers/ });
  t.throws(() => decodeNvmeState([...records, records[0]!]), { message: /Identity came twice/ });
  t.same(decodeNvmeState(without(0x10008)).health.errors, [], 'counters may be left out');
  const unknown = { type: 0x10077, optional: true, payload: Uint8Array.of(1) };
  t.same(decodeNvmeState([...records, unknown]), sample);
  t.throws(() => decodeNvmeState([...records, { ...unknown, optional: false }]), {
    message: /0x10077 is not known/,
  });
  const huge = new Uint8Array(1024 * 1024 + 1);
  t.throws(() => decodeNvmeState(withPayload(0x10003, huge)), { message: /exceeds 1048576/ });
});

t.test('a newer writer: fields that this reader does not know', async (t) => {
  const newer = new Schema(
    '',
    'syntax = "proto3"; package p; message M { uint32 cc = 1; string more = 9; }',
  ).message('M');
  const payload = newer.encode({ cc: 5, more: 'later' });
  t.equal(decodeNvmeState(withPayload(0x10002, payload)).registers.cc, 5);
  t.match(nvmeDescription.describe?.(0x10002, payload, { major: 1, minor: 1 }), {
    cc: 5,
    'unknown field 9': { length: 7, first: '4a056c61746572' },
  });
  const wide = new Schema('', 'syntax = "proto3"; package p; message M { uint64 asq = 5; }').message('M');
  t.throws(() => decodeNvmeState(withPayload(0x10002, wide.encode({ asq: 2 ** 60 }))), {
    message: /asq is 2\^53 or more/,
  });
});

t.test('bytes of a message, by hand from the schema', async (t) => {
  const payload = encodeNvmeState({
    ...sample,
    completions: [{ submissionQueue: 1, commandId: 0x1234, status: 0x4002, result: 7 }],
  }).find(({ type }) => type === 0x10004)?.payload;
  t.equal(Buffer.from(payload ?? []).toString('hex'), '0a0b080110b424188280012007');
});
