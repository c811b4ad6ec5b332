// SPDX-License-Identifier: Apache-2.0
/** Inspection: the stable JSON, its bounds, and the text made of it. */
import fc from 'fast-check';
import t from 'tap';
import { EnvelopeEncoder } from '../../../src/formats/envelope/encoder.js';
import { type EnvelopeInspection, type FormatDescription, inspect } from '../../../src/formats/index.js';
import { renderInspection } from '../../../src/formats/inspection/render.js';
import { parseUuid } from '../../../src/formats/uuid.js';
import { encodeBlob, fixture, MINIMAL_HEADER, MINIMAL_RECORDS, type PlainRecord } from '../blobs.js';

async function inspectEnvelope(
  blob: Uint8Array,
  formats: FormatDescription[] = [],
): Promise<EnvelopeInspection> {
  const value = await inspect([blob], { formats });
  if (value.kind !== 'envelope') throw new Error(`inspected as ${value.kind}`);
  return value;
}

t.test('the fixtures, in chunks of any size', async (t) => {
  for (const name of ['minimal', 'newer-writer']) {
    const expected = JSON.parse(fixture(`${name}.json`).toString());
    const blob = fixture(`${name}.bin`);
    for (const size of [1, 7, 4096]) {
      const chunks = async function* () {
        for (let at = 0; at < blob.length; at += size) yield blob.subarray(at, at + size);
      };
      t.strictSame(JSON.parse(JSON.stringify(await inspect(chunks()))), expected, `${name} by ${size}`);
    }
  }
});

t.test('what is no envelope is unknown, with its size and first bytes', async (t) => {
  const cases: [string, Uint8Array, string, string][] = [
    ['nothing', new Uint8Array(0), '', 'TRUNCATED'],
    ['a word', Buffer.from('hello'), '68656c6c6f', 'TRUNCATED'],
    ['zeros', new Uint8Array(5000), '00'.repeat(16), 'MAGIC'],
    [
      'a damaged header',
      Buffer.from(encodeBlob([])).fill(1, 28, 32),
      'd49a84ce5d674c5c9ba86c99372bc19d',
      'HEADER',
    ],
  ];
  for (const [what, bytes, first, code] of cases) {
    const value = await inspect([bytes]);
    t.match(
      value,
      { kind: 'unknown', size: bytes.length, error: { code: `DEVSTATE_E_ENVELOPE_${code}` } },
      what,
    );
    t.equal(value.kind === 'unknown' && value.first, first);
    t.match(renderInspection(value), /^Format: +unknown\n/);
  }
});

t.test('damage is reported beside what came before it, and the input read to its end', async (t) => {
  const blob = encodeBlob(MINIMAL_RECORDS);
  blob[210]! ^= 1;
  const rest = new Uint8Array(1000);
  const value = await inspect([blob.subarray(0, 100), blob.subarray(100), rest]);
  t.match(value, {
    kind: 'envelope',
    size: blob.length + 1000,
    totals: { records: 1, payloadBytes: 5 },
    digest: { ok: false, value: null },
    error: { code: 'DEVSTATE_E_ENVELOPE_RECORD', offset: 208, record: 1 },
  });
  t.match(renderInspection(value), /DEVSTATE_E_ENVELOPE_RECORD: .*record 1,?\s+offset 208/s);
});

t.test("an input that fails is the caller's error", async (t) => {
  const broken = async function* () {
    yield new Uint8Array(1);
    throw new Error('no more');
  };
  await t.rejects(inspect(broken()), /no more/);
});

const DESCRIPTION: FormatDescription = {
  uuid: MINIMAL_HEADER.format,
  recordName: (type) =>
    new Map(
      [0x10001, 0x10003, 0x10004].map((known, index) => [known, ['registers', 'page', 'odd'][index]!]),
    ).get(type),
  describe: (type, payload) => {
    if (type === 0x10003) return undefined;
    if (type === 0x10004) throw new Error('this payload is odd');
    return {
      first: payload[0] ?? null,
      queues: [{ id: 1 }, { id: 2 }],
      list: [1, 2],
      none: [],
      text: 'a\u001b[2J\u202eb',
    };
  },
};

const DESCRIBED: PlainRecord[] = [
  { type: 0x10001, flags: 0, payload: Buffer.from('hello') },
  ...Array.from({ length: 5 }, () => ({ type: 0x10003, flags: 0, payload: new Uint8Array(1024) })),
  { type: 0x10003, flags: 1, payload: new Uint8Array(0) },
  { type: 0x10004, flags: 0, payload: new Uint8Array(3) },
  { type: 0x10005, flags: 1, payload: Buffer.from('\u001b[31mred') },
];

t.test('a format explains its records', async (t) => {
  const value = await inspectEnvelope(encodeBlob(DESCRIBED), [DESCRIPTION]);
  t.same(
    value.records.map((record) => record.name),
    ['registers', ...new Array(6).fill('page'), 'odd', null],
  );
  t.match(value.fields, [
    { record: 0, name: 'registers', values: { first: 104, list: [1, 2] } },
    { record: 7, name: 'odd', values: { error: 'this payload is odd' } },
  ]);
  t.equal(value.fields.length, 2);
  t.equal(value.records.at(-1)!.first, Buffer.from('\u001b[31mred').toString('hex'));

  const elsewhere = { ...DESCRIPTION, uuid: parseUuid('11111111-2222-4333-8444-555555555555') };
  const unexplained = await inspectEnvelope(encodeBlob(DESCRIBED), [elsewhere]);
  t.ok(
    unexplained.records.every((record) => record.name === null),
    'a description of another format is not used',
  );
});

t.test('the text, line by line', async (t) => {
  const text = renderInspection(await inspectEnvelope(encodeBlob(DESCRIBED), [DESCRIPTION]), {
    fields: true,
  });
  const expected = [
    'Format:      org.devstate.nvme.alder 1.0 (vendor)',
    '             d49a84ce-5d67-4c5c-9ba8-6c99372bc19d',
    'Model:       devstate.org/nvme',
    '             └─ queues = 4',
    'Producer:    devstate 0.1.0',
    'Stream:      ffb52a17-6d23-4071-bc66-ecaaf72ae18c',
    'Features:    none',
    'Size:        5.5 KiB',
    'Records:     9, 5.0 KiB of payload',
    '├─ 0           registers                                        5 B @168',
    '│  ├─ first = 104',
    '│  ├─ queues',
    '│  │  ├─ [0]',
    '│  │  │  └─ id = 1',
    '│  │  └─ [1]',
    '│  │     └─ id = 2',
    '│  ├─ list = [1,2]',
    '│  ├─ none = []',
    '│  └─ text = "a\\u001b[2J\\u{202e}b"',
    '├─ 1–5         page                                         5.0 KiB @208',
    '├─ 6           page                           optional          0 B @5488',
    '├─ 7           odd                                              3 B @5520',
    '│  └─ error = "this payload is odd"',
    '├─ 8           unknown 0x00010005             optional          8 B @5560',
    '│  └─ 1b 5b 33 31 6d 72 65 64',
  ];
  const lines = text.split('\n');
  t.strictSame(lines.slice(0, expected.length), expected);
  t.match(lines[expected.length], /^└─ end: sha256 [0-9a-f]{32}… ok$/);
  t.strictSame(lines.slice(expected.length + 1), ['Status:      intact and complete', '']);
  const brief = renderInspection(await inspectEnvelope(encodeBlob(DESCRIBED), [DESCRIPTION])).split('\n');
  const isField = (line: string) => /^│ {2}.* = |^│ {2}[├│└]/.test(line) && !/error|1b 5b/.test(line);
  t.strictSame(
    brief,
    lines.filter((line) => !isField(line)),
    'without fields, but for what is wrong with them',
  );
});

t.test('no text reaches beyond 80 columns or carries control characters', async (t) => {
  const arbitraryText = fc.string({ unit: 'binary', minLength: 1, maxLength: 200 });
  const record = fc.record({
    type: fc.integer({ min: 0x10000, max: 0x10004 }),
    flags: fc.constantFrom(0, 1),
    payload: fc.uint8Array({ maxLength: 40 }),
  });
  const property = fc.asyncProperty(fc.array(record), arbitraryText, arbitraryText, async (records, a, b) => {
    const header = {
      ...MINIMAL_HEADER,
      model: a,
      parameters: { serial: b },
      producer: { name: b, version: a },
      other: { b: [a] },
    };
    const describe = () => ({ [a]: b, nested: { [b]: [a, { deeper: a }] } });
    const value = await inspect([encodeBlob(records, header)], {
      formats: [{ ...DESCRIPTION, recordName: () => b, describe }],
    });
    const bytes = (_offset: number, length: number) => new Uint8Array(length).fill(0x1b);
    const texts = [{}, { fields: true }, { fields: true, bytes }].map((options) =>
      renderInspection(value, options),
    );
    const lines = texts.flatMap((text) => text.split('\n'));
    return lines.every((line) => [...line].length <= 80 && !/[\p{C}\p{Zl}\p{Zp}]/u.test(line));
  });
  await fc.assert(property, { numRuns: 100 });
  t.pass();
});

/** The pieces of a blob with `count` empty records, of which the type is `typeOf(index)`. */
function* manyRecords(count: number, typeOf: (index: number) => number): Generator<Uint8Array> {
  const encoder = new EnvelopeEncoder(MINIMAL_HEADER);
  yield encoder.header();
  const none = new Uint8Array(0);
  for (let index = 0; index < count; index++) yield encoder.record(typeOf(index), 0, none)[0]!;
  yield encoder.end();
}

t.test('records beyond the bounds are counted, not listed', async (t) => {
  const same = (await inspect(manyRecords(12_000, () => 0x10000))) as EnvelopeInspection;
  t.equal(same.records.length, 10_000);
  t.strictSame(same.omitted, [{ type: 0x10000, name: null, count: 2000, payloadBytes: 0 }]);
  t.equal(same.totals.records, 12_000);
  t.match(renderInspection(same), /… 2000 further records unknown 0x00010000, 0 B/);

  const all = (await inspect(manyRecords(50_000, (index) => 0x10000 + index))) as EnvelopeInspection;
  t.equal(all.records.length, 40_000);
  t.equal(all.omitted.length, 1001);
  t.strictSame(all.omitted.at(-1), { type: null, name: null, count: 9000, payloadBytes: 0 });
  t.match(all, { totals: { records: 50_000 }, digest: { ok: true }, error: null });
  t.match(renderInspection(all), /39800 further records .*further records of further types/s);
});

t.test('fields beyond the bound are left out, and said to be', async (t) => {
  const describe = () => ({ text: 'x'.repeat(1024 * 1024) });
  const formats = [{ ...DESCRIPTION, recordName: () => 'page', describe }];
  const value = (await inspect(
    manyRecords(20, () => 0x10003),
    { formats },
  )) as EnvelopeInspection;
  t.equal(value.fields.length, 4);
  t.equal(value.fieldsOmitted, 16);
  t.match(renderInspection(value), /fields of 16 records left out/);

  const lines = { ...DESCRIPTION, describe: () => ({ rows: Array.from({ length: 600 }, () => ({ a: 1 })) }) };
  const tall = (await inspect(
    manyRecords(1, () => 0x10001),
    { formats: [lines] },
  )) as EnvelopeInspection;
  t.match(renderInspection(tall, { fields: true }), /… 701 further lines/);
});
