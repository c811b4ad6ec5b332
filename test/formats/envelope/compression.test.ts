// SPDX-License-Identifier: Apache-2.0
/** Compressed payloads: written only where they are smaller, read by anybody who has the feature, refused when not sound. */
import { randomBytes } from 'node:crypto';
import { deflateRawSync } from 'node:zlib';
import fc from 'fast-check';
import t from 'tap';
import { COMPRESSIONS } from '../../../src/formats/envelope/compression.js';
import { decodeEnvelope } from '../../../src/formats/envelope/decoder.js';
import { EnvelopeEncoder } from '../../../src/formats/envelope/encoder.js';
import type { EnvelopeHeader } from '../../../src/formats/envelope/header.js';
import { RecordFlag } from '../../../src/formats/envelope/layout.js';
import { inspect } from '../../../src/formats/index.js';
import { codeOf, encodeBlob, forgeEnd, forgeRecord, MINIMAL_HEADER } from '../blobs.js';

const DEFLATE: EnvelopeHeader = { ...MINIMAL_HEADER, features: ['deflate'] };
const record = (payload: Uint8Array, flags = 0) => ({ type: 0x10001, flags, payload });

/** A blob with one record whose compressed payload is as given. */
function forged(payload: Uint8Array, flags: number, header = DEFLATE): Uint8Array {
  const features = new Map<string, number>(Object.entries(RecordFlag));
  const start = new EnvelopeEncoder(header, { features }).header();
  const made = forgeRecord(0, record(payload, flags));
  return Buffer.concat([start, made, forgeEnd(start, [made])]);
}

function stored(length: number, data: Uint8Array): Uint8Array {
  const bytes = Buffer.alloc(4 + data.length);
  bytes.writeUInt32LE(length);
  bytes.set(data, 4);
  return bytes;
}

t.ok(COMPRESSIONS.includes('deflate'), 'there is always deflate');

for (const name of COMPRESSIONS) {
  const header = { ...MINIMAL_HEADER, features: [name] };
  t.test(`${name}: what is read is what was written`, async (t) => {
    const payload = fc.oneof(
      fc.uint8Array({ maxLength: 2000 }),
      fc
        .tuple(fc.uint8Array({ minLength: 1, maxLength: 20 }), fc.integer({ min: 1, max: 2000 }))
        .map(([unit, times]) => new Uint8Array(Buffer.concat(Array.from({ length: times }, () => unit)))),
    );
    fc.assert(
      fc.property(fc.array(payload, { maxLength: 5 }), (payloads) => {
        const blob = encodeBlob(
          payloads.map((payload) => record(payload, 1)),
          header,
        );
        const { records, summary } = decodeEnvelope(blob);
        t.same(
          records.map(({ payload }) => Buffer.from(payload).toString('hex')),
          payloads.map((payload) => Buffer.from(payload).toString('hex')),
        );
        for (const { flags, storedLength, payload } of records) {
          if (flags === 1) t.equal(storedLength, payload.length);
          else t.ok(storedLength < payload.length);
        }
        t.equal(
          summary.payloadBytes,
          records.reduce((sum, { storedLength }) => sum + storedLength, 0),
        );
      }),
      { numRuns: 200 },
    );
  });
  t.test(`${name}: only where it helps, and only when asked for`, async (t) => {
    const zeros = new Uint8Array(100_000);
    const noise = randomBytes(100_000);
    const { records } = decodeEnvelope(encodeBlob([record(zeros), record(noise)], header));
    t.ok(records[0]!.storedLength < 2000);
    t.equal(records[0]!.flags, name === 'zstd' ? RecordFlag.zstd : RecordFlag.deflate);
    t.match(records[1], { flags: 0, storedLength: noise.length });
    const plain = decodeEnvelope(encodeBlob([record(zeros)]));
    t.match(plain.records[0], { flags: 0, storedLength: zeros.length });
    t.equal(
      codeOf(encodeBlob([record(zeros)], header), { features: new Map() }),
      'DEVSTATE_E_ENVELOPE_FEATURE',
    );
  });
}

t.test('payloads that are not what the feature says', async (t) => {
  const plain = Buffer.alloc(1000, 'state');
  const data = deflateRawSync(plain);
  t.equal(codeOf(forged(stored(1000, data), RecordFlag.deflate)), '');
  const { deflate, zstd } = RecordFlag;
  const both = { ...MINIMAL_HEADER, features: ['deflate', 'zstd'] };
  const cases: [string, Uint8Array, RegExp][] = [
    ['too short for a length', forged(Buffer.from([1, 0, 0]), deflate), /hold no length/],
    ['a length of 0', forged(stored(0, data), deflate), /length is given as 0/],
    ['a length beyond any record', forged(stored(2 ** 24 + 1, data), deflate), /16777217/],
    ['shorter than said', forged(stored(1001, data), deflate), /1000 bytes instead of 1001/],
    ['longer than said', forged(stored(999, data), deflate), /decompressed/],
    ['no compressed data', forged(stored(1000, Buffer.from('no such data')), deflate), /decompressed/],
    ['cut', forged(stored(1000, data.subarray(0, -1)), deflate), /decompressed/],
    ['more than the data', forged(stored(1000, Buffer.concat([data, plain])), deflate), /bytes follow/],
    ['two ways at once', forged(stored(1000, data), deflate | zstd, both), /two ways/],
  ];
  for (const [name, blob, message] of cases) {
    const options = name === 'two ways at once' ? { lenient: true } : {};
    t.throws(
      () => decodeEnvelope(blob, options),
      { code: 'DEVSTATE_E_ENVELOPE_PAYLOAD', record: 0, message },
      name,
    );
  }
});

t.test('a small blob does not become much memory', async (t) => {
  const bomb = deflateRawSync(Buffer.alloc(64 << 20));
  t.ok(bomb.length < 100_000);
  const before = process.memoryUsage().arrayBuffers;
  t.equal(codeOf(forged(stored(2 ** 24, bomb), RecordFlag.deflate)), 'DEVSTATE_E_ENVELOPE_PAYLOAD');
  t.ok(process.memoryUsage().arrayBuffers - before < 64 << 20);
});

t.test('a compression that cannot be undone here is shown as such, and refused by who loads', async (t) => {
  if (COMPRESSIONS.includes('zstd')) return void t.pass('this runtime has all of them');
  const header = { ...MINIMAL_HEADER, features: ['zstd'] };
  const blob = forged(stored(1000, Buffer.from('28b52ffd', 'hex')), RecordFlag.zstd, header);
  t.throws(() => decodeEnvelope(blob), { code: 'DEVSTATE_E_ENVELOPE_FEATURE', message: /zstd/ });
  const { records } = decodeEnvelope(blob, { lenient: true });
  t.match(records, [{ sealed: true, storedLength: 8 }]);
  const inspection = await inspect([blob]);
  t.match(inspection, {
    kind: 'envelope',
    features: ['zstd'],
    error: null,
    records: [{ compression: 'zstd' }],
  });
});
