// SPDX-License-Identifier: Apache-2.0
/** `verify`: no single byte of a real controller's blob can change, and none be missing, without being found and placed. */

import t from 'tap';
import { decodeEnvelope } from '../../src/formats/index.js';
import { type VerifyResult, verifyFile } from '../../src/operations/index.js';
import { encodeBlob, fixture, forgeHeader, forgeRecord, MINIMAL_HEADER, piecesOf } from '../formats/blobs.js';
import { savedBlob } from './files/saved.js';

t.setTimeout(120_000);

/** Length of an end record. */
const END_LENGTH = 80;

/** Verifies bytes as if they came in pieces of `size` from a file. */
function verify(bytes: Uint8Array, size = 700): Promise<VerifyResult> {
  return verifyFile({
    async *chunks() {
      for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
    },
  });
}

/** Where the blob's records begin, the end record with them. */
function recordOffsets(blob: Uint8Array): number[] {
  return [...decodeEnvelope(blob).records.map(({ offset }) => offset), blob.length - END_LENGTH];
}

/** The header's own length is read before the checksum that is at its end: more than the file is a file that is cut. */
function isHeaderBeyondEnd(at: number, code: string | undefined): boolean {
  return (at === 26 || at === 27) && code === 'DEVSTATE_E_ENVELOPE_TRUNCATED';
}

const BLOBS = {
  'alder, plain': {},
  'alder, compressed': { features: ['deflate'] },
  'birch, plain': { vendor: 'birch' },
  'the standard format': { format: 'org.devstate.nvme' },
} as const;

for (const [name, options] of Object.entries(BLOBS)) {
  t.test(name, async (t) => {
    const blob = await savedBlob(t, {
      ...options,
      features: [...('features' in options ? options.features : [])],
    });
    const offsets = recordOffsets(blob);
    const whole = await verify(blob);
    t.match(whole, { intact: true, size: blob.length, records: offsets.length - 1, error: null });
    t.match(whole.digest, /^[0-9a-f]{64}$/);
    if ('features' in options) t.ok(decodeEnvelope(blob).records.some(({ flags }) => (flags & 0xfffe) !== 0));

    const wrong: string[] = [];
    const codes = new Set<string>();
    /** The record that a byte is of, null in front of them. */
    const recordAt = (at: number): number | null => {
      const index = offsets.findLastIndex((offset) => offset <= at);
      return index < 0 ? null : index;
    };
    for (let at = 0; at < blob.length; at++) {
      const expected = recordAt(at);
      for (const mask of [1 << (at % 8), 0xff]) {
        const damaged = blob.slice();
        damaged[at]! ^= mask;
        const { intact, digest, error } = await verify(damaged);
        codes.add(error?.code ?? 'none');
        const { offset = null, record = null } = error ?? {};
        const placed =
          expected === null
            ? offset !== null && (offset <= at || isHeaderBeyondEnd(at, error?.code))
            : offset === offsets[expected] && record === expected;
        if (intact || digest !== null || !placed) {
          wrong.push(`byte ${at} ^ ${mask}: ${error?.code} at ${offset}, record ${record}, not ${expected}`);
        }
      }
    }
    t.same(wrong, [], 'every byte that changes is found, and placed');
    t.notOk(codes.has('none'));
    for (const code of ['MAGIC', 'HEADER', 'METADATA', 'RECORD', 'PAYLOAD']) {
      t.ok(codes.has(`DEVSTATE_E_ENVELOPE_${code}`), code);
    }

    for (let length = 0; length < blob.length; length++) {
      const { intact, size, records, error } = await verify(blob.subarray(0, length));
      const before = offsets.filter((offset, index) => index > 0 && offset <= length).length;
      const right =
        !intact &&
        size === length &&
        records === before &&
        error?.code === 'DEVSTATE_E_ENVELOPE_TRUNCATED' &&
        error.offset === length &&
        error.record === recordAt(length);
      if (!right) wrong.push(`cut at ${length}: ${JSON.stringify(error)}, ${records} records`);
    }
    t.same(wrong, [], 'every length that it is cut to is found, and placed');
  });
}

t.test('what checksums alone do not tell', async (t) => {
  const payload = Buffer.from('payload');
  const records = [1, 2, 3].map((number) => ({ type: 0x10000 + number, flags: 0, payload }));
  const blob = encodeBlob(records);
  const { header, records: pieces, end } = piecesOf(blob);
  const [first, second, third] = pieces as [Uint8Array, Uint8Array, Uint8Array];
  const cases: [string, Uint8Array[], string, number | null][] = [
    ['as it was', [header, first, second, third, end], '', null],
    ['a record that is missing', [header, first, third, end], 'RECORD_MISSING', 1],
    ['records exchanged', [header, second, first, third, end], 'RECORD_MISSING', 0],
    ['a record twice', [header, first, first, second, third, end], 'RECORD_REPEATED', 1],
    ['a record of another blob', [header, first, forgeRecord(1, records[0]!), third, end], 'DIGEST', 3],
    ['no end', [header, first, second, third], 'TRUNCATED', 3],
    ['another blob behind it', [blob, blob], 'TRAILING', null],
    ['a later envelope', [forgeHeader(header, { 24: [9, 0] }), first, second, third, end], 'VERSION', null],
  ];
  for (const [what, parts, code, record] of cases) {
    const { intact, error } = await verify(new Uint8Array(Buffer.concat(parts)));
    t.equal(intact, code === '', what);
    t.equal(error?.code ?? '', code && `DEVSTATE_E_ENVELOPE_${code}`, what);
    if (error !== null) t.equal(error.record, record, `${what}: record`);
  }
});

t.test('no format has to be known, nor any feature: only the envelope is looked at', async (t) => {
  const { header } = decodeEnvelope(fixture('newer-writer.bin'), { lenient: true });
  t.match(await verify(fixture('newer-writer.bin')), { intact: true, format: /./ });
  t.ok(Object.keys(header.other).length > 0);
  const format = 'aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee' as typeof MINIMAL_HEADER.format;
  const foreign = encodeBlob([{ type: 0x10000, flags: 0, payload: new Uint8Array(1) }], {
    ...MINIMAL_HEADER,
    format,
    version: { major: 7, minor: 3 },
  });
  t.match(await verify(foreign), { intact: true, format: `${format} 7.3`, records: 1 });
});
