// SPDX-License-Identifier: Apache-2.0
/** Records that are carried along: their bytes, back and forth, and what no writer makes of them. */

import fc from 'fast-check';
import t from 'tap';
import { KeptRecords, RecordKeeper } from '../../../src/formats/conversion/kept-record.js';
import { RECORD_LENGTH_MAX } from '../../../src/formats/index.js';
import { uuidFromBytes } from '../../../src/formats/uuid.js';
import { hex, sameBytes, toHex } from '../../support/hex.js';
import { codeThrownBy } from '../blobs.js';
import { OAK } from './rune.js';

const DAMAGED = 'DEVSTATE_E_ENVELOPE_RECORD';
const WHERE = { offset: 1000, record: 3 };
const POINT = { uuid: OAK.uuid, major: 0x0102 };

/** Kept, byte by byte: format, major, 0, type, flags, continues, payload. */
const KEPT = '0000000b000040008000000000000001 0201 0000 45230100 00008001 00000000 68656c6c6f';
const RECORD = {
  type: 0x12345,
  optional: true,
  formatFlags: 0x01800000,
  payload: new Uint8Array(Buffer.from('hello')),
};

/** A payload is valid only until the next is asked for. One keeper for all: what it kept before must not show. */
const keeper = new RecordKeeper();
const keep = (...args: Parameters<RecordKeeper['keep']>): Uint8Array[] =>
  Array.from(keeper.keep(...args), (payload) => {
    const copy = payload.slice();
    payload.fill(0xee);
    return copy;
  });

t.test('byte by byte', async (t) => {
  const [payload, ...others] = keep(RECORD, POINT);
  t.equal(others.length, 0);
  t.equal(toHex(payload!), KEPT.replaceAll(' ', ''));
  const taken = new KeptRecords().take(hex(KEPT), WHERE);
  t.strictSame(taken?.point, POINT);
  t.strictSame(
    { ...taken?.record, payload: toHex(taken!.record.payload) },
    { ...RECORD, payload: '68656c6c6f' },
  );
  const { formatFlags: _, ...plain } = RECORD;
  t.equal(toHex(keep(plain, POINT)[0]!).slice(48, 56), '00000000', 'no flags of the format');
});

t.test('every record comes back', async (t) => {
  const bytes16 = fc.uint8Array({ minLength: 16, maxLength: 16 });
  const u32 = fc.integer({ min: 0x10000, max: 0xffffffff });
  fc.assert(
    fc.property(
      bytes16,
      fc.nat(0xffff),
      u32,
      fc.nat(0xffff),
      fc.uint8Array(),
      (uuid, major, type, flags, payload) => {
        const record = { type, optional: true, formatFlags: flags * 0x10000, payload };
        const point = { uuid: uuidFromBytes(uuid), major };
        const kept = new KeptRecords();
        const taken = keep(record, point).map((one) => kept.take(one, WHERE));
        kept.end(WHERE);
        t.strictSame(taken.at(-1)?.point, point);
        t.ok(sameBytes(taken.at(-1)!.record.payload, payload));
        t.strictSame({ ...taken.at(-1)?.record, payload }, record);
      },
    ),
    { numRuns: 100, seed: 1 },
  );
});

t.test('the longest records', async (t) => {
  for (const length of [RECORD_LENGTH_MAX - 32, RECORD_LENGTH_MAX - 31, RECORD_LENGTH_MAX]) {
    const payload = new Uint8Array(length);
    for (let at = 0; at < length; at += 4093) payload[at] = at % 251;
    const payloads = keep({ ...RECORD, payload }, POINT);
    t.equal(payloads.length, length > RECORD_LENGTH_MAX - 32 ? 2 : 1, `${length}`);
    t.ok(
      payloads.every((one) => one.length <= RECORD_LENGTH_MAX),
      'each is a record that may be',
    );
    const kept = new KeptRecords();
    const taken = payloads.map((one) => {
      const result = kept.take(one, WHERE);
      // What was given is valid only until the call returns.
      if (result === undefined) one.fill(0xee);
      return result;
    });
    t.strictSame(
      taken.map((one) => one !== undefined),
      payloads.length === 2 ? [false, true] : [true],
    );
    t.ok(sameBytes(taken.at(-1)!.record.payload, payload));
    t.doesNotThrow(() => kept.end(WHERE));
  }
});

t.test('what no writer makes', async (t) => {
  const sound = hex(KEPT);
  const changed = (at: number, ...bytes: number[]): Uint8Array => {
    const copy = sound.slice();
    copy.set(bytes, at);
    return copy;
  };
  const continued = changed(28, 1);
  const wrong: [string, Uint8Array[]][] = [
    ['nothing', [new Uint8Array(0)]],
    ['less than its head', [sound.slice(0, 31)]],
    ['a role that there is not', [changed(18, 2)]],
    ['a type of the envelope', [changed(20, 0xff, 0xff, 0, 0)]],
    ['flags of the envelope', [changed(24, 1, 0, 0, 0)]],
    ['flags of a feature', [changed(24, 0, 0x80, 0, 0)]],
    ['a continuation that is neither yes nor no', [changed(28, 2)]],
    ['continued by a record of another format', [continued, changed(0, 0xff)]],
    ['continued by another version', [continued, changed(16, 0xff)]],
    ['continued by another type', [continued, changed(20, 0xff)]],
    ['continued by other flags', [continued, changed(26, 0xff)]],
    ['continued for ever', [continued, continued]],
    [
      'longer than any record',
      [new Uint8Array(RECORD_LENGTH_MAX), sound].map((one, i) => {
        if (i === 0) one.set(continued);
        return i === 0 ? one : new Uint8Array(Buffer.concat([one, new Uint8Array(32)]));
      }),
    ],
  ];
  for (const [what, payloads] of wrong) {
    const kept = new KeptRecords();
    const code = codeThrownBy(() => {
      for (const [index, payload] of payloads.entries()) {
        const taken = kept.take(payload, WHERE);
        if (taken !== undefined || index === payloads.length - 1) return;
      }
    });
    t.equal(code, DAMAGED, what);
  }
  const kept = new KeptRecords();
  kept.take(continued, WHERE);
  t.throws(() => kept.end(WHERE), { code: DAMAGED, message: /does not continue \(record 3, offset 1000\)/ });
  t.throws(() => new KeptRecords().take(new Uint8Array(1), WHERE), {
    message: /record 3, offset 1000/,
  });
});
