// SPDX-License-Identifier: Apache-2.0
/** Compressed payloads: written only where they are smaller, read by anybody who has the feature, refused when not sound. */
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as zlib from 'node:zlib';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { COMPRESSIONS } from '../../../src/formats/envelope/compression.js';
import { decodeEnvelope, EnvelopeDecoder } from '../../../src/formats/envelope/decoder.js';
import { EnvelopeEncoder } from '../../../src/formats/envelope/encoder.js';
import type { EnvelopeHeader } from '../../../src/formats/envelope/header.js';
import { RecordFlag } from '../../../src/formats/envelope/layout.js';
import { inspect } from '../../../src/formats/index.js';
import { convertFile } from '../../../src/operations/convert-file.js';
import { InputFile } from '../../../src/operations/files/input.js';
import { withOutput } from '../../../src/operations/files/output.js';
import { verifyFile } from '../../../src/operations/index.js';
import { codeOf, encodeBlob, forgeEnd, forgeRecord, MINIMAL_HEADER } from '../blobs.js';

const { deflateRawSync } = zlib;
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

/** Node 22.15 has it; the types are those of Node 20. */
const { zstdCompressSync } = zlib as { zstdCompressSync?: (plain: Uint8Array) => Buffer };
const PACKS = new Map<'deflate' | 'zstd', (plain: Uint8Array) => Buffer>([['deflate', deflateRawSync]]);
if (zstdCompressSync !== undefined) PACKS.set('zstd', zstdCompressSync);

t.ok(COMPRESSIONS.includes('deflate'), 'there is always deflate');
t.same([...PACKS.keys()].sort(), [...COMPRESSIONS].sort(), 'and zstd where Node.js has it');

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

for (const [name, pack] of PACKS) {
  const header = { ...MINIMAL_HEADER, features: [name] };
  const flag = RecordFlag[name];
  t.test(`${name}: payloads that are not what the feature says`, async (t) => {
    const plain = Buffer.alloc(1000, 'state');
    const data = pack(plain);
    t.equal(codeOf(forged(stored(1000, data), flag, header)), '');
    const cases: [string, Uint8Array, RegExp][] = [
      ['too short for a length', Buffer.from([1, 0, 0]), /hold no length/],
      ['a length of 0', stored(0, data), /length is given as 0/],
      ['a length beyond any record', stored(2 ** 24 + 1, data), /16777217/],
      ['shorter than said', stored(1001, data), /1000 bytes instead of 1001/],
      ['longer than said', stored(999, data), /decompressed/],
      ['no compressed data', stored(1000, Buffer.from('no such data')), /decompressed/],
      ['cut', stored(1000, data.subarray(0, -1)), /decompressed/],
      ['more than the data', stored(1000, Buffer.concat([data, plain])), /decompressed/],
    ];
    for (const [what, payload, message] of cases) {
      t.throws(
        () => decodeEnvelope(forged(payload, flag, header)),
        { code: 'DEVSTATE_E_ENVELOPE_PAYLOAD', record: 0, message },
        what,
      );
    }
  });

  t.test(`${name}: a small blob does not become much memory`, async (t) => {
    const bomb = pack(Buffer.alloc(64 << 20));
    t.ok(bomb.length < 100_000);
    const before = process.memoryUsage().arrayBuffers;
    t.equal(codeOf(forged(stored(2 ** 24, bomb), flag, header)), 'DEVSTATE_E_ENVELOPE_PAYLOAD');
    t.ok(process.memoryUsage().arrayBuffers - before < 64 << 20);
  });

  t.test(`${name}: a long payload is decompressed on another thread`, async (t) => {
    const plain = Buffer.alloc(3 << 20, 'state');
    const records: Uint8Array[] = [];
    const decoder = new EnvelopeDecoder({ onRecord: ({ payload }) => void records.push(payload.slice()) });
    await decoder.pushInTurns(encodeBlob([record(plain)], header));
    decoder.finish();
    t.equal(records.length, 1);
    t.ok(plain.equals(records[0]!));
  });
}

t.test('compressed in two ways at once', async (t) => {
  const { deflate, zstd } = RecordFlag;
  const both = { ...MINIMAL_HEADER, features: ['deflate', 'zstd'] };
  const blob = forged(stored(1000, deflateRawSync(Buffer.alloc(1000))), deflate | zstd, both);
  t.throws(() => decodeEnvelope(blob, { lenient: true }), {
    code: 'DEVSTATE_E_ENVELOPE_PAYLOAD',
    record: 0,
    message: /two ways/,
  });
});

/** A frame of zstd as RFC 8878 has it: 1,000 times the letter A, as one block of the kind RLE. */
const ZSTD_FRAME = Buffer.from('28b52ffd60e802431f0041', 'hex');
const ZSTD_BLOB = forged(stored(1000, ZSTD_FRAME), RecordFlag.zstd, {
  ...MINIMAL_HEADER,
  features: ['zstd'],
});

/** A file that holds {@link ZSTD_BLOB}, and what the commands of these names make of it. */
async function commands(t: Test) {
  const folder = t.testdir();
  writeFileSync(join(folder, 'blob'), ZSTD_BLOB);
  const input = await InputFile.open(join(folder, 'blob'));
  t.teardown(() => input.close());
  return {
    inspect: () => inspect([ZSTD_BLOB]),
    verify: () => verifyFile(input),
    convert: async () => {
      const options = { to: 'org.devstate.nvme.alder', compress: false };
      const output = join(folder, 'converted');
      await withOutput(output, (file) => convertFile(input, file, options));
      return decodeEnvelope(readFileSync(output)).records;
    },
  };
}

const readZstd = async (t: Test): Promise<void> => {
  const { inspect, verify, convert } = await commands(t);
  const plain = Buffer.alloc(1000, 'A');
  t.ok(plain.equals(decodeEnvelope(ZSTD_BLOB).records[0]!.payload));
  t.match(await inspect(), { error: null, records: [{ compression: 'zstd', length: 1000 }] });
  t.match(await verify(), { intact: true, records: 1 });
  const [converted] = await convert();
  t.equal(converted!.flags, 0);
  t.ok(plain.equals(converted!.payload));
};

const refuseZstd = async (t: Test): Promise<void> => {
  const { inspect, verify, convert } = await commands(t);
  const refusal = {
    code: 'DEVSTATE_E_ENVELOPE_FEATURE',
    message: /feature zstd, which Node\.js [\d.]+ does not have: use Node\.js 22\.15 or newer/,
  };
  t.throws(() => decodeEnvelope(ZSTD_BLOB), refusal);
  await t.rejects(convert(), refusal);
  const { records } = decodeEnvelope(ZSTD_BLOB, { lenient: true });
  t.match(records, [{ sealed: true, storedLength: 4 + ZSTD_FRAME.length }]);
  t.match(await verify(), { intact: true, records: 1 });
  const shown = { kind: 'envelope', features: ['zstd'], error: null, records: [{ compression: 'zstd' }] };
  t.match(await inspect(), shown);
};

if (PACKS.has('zstd')) t.test('zstd that another program has written is read', readZstd);
else t.test('zstd is shown as such, and refused by who needs what is in it', refuseZstd);
