// SPDX-License-Identifier: Apache-2.0
/** The Controller State data structure of NVMe 2.1: byte tables, what is refused, there and back; and its format. */
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import { DevstateError } from '../../../src/errors.js';
import {
  controllerStateDescription,
  decodeControllerState,
  decodeControllerStateRecords,
  encodeControllerState,
  encodeControllerStateRecords,
  NVME_CONTROLLER_STATE,
  type NvmeControllerState,
  newUuid,
  parseUuid,
} from '../../../src/formats/index.js';
import { fixture } from '../blobs.js';

/** A whole structure, by hand. */
const BYTES = Buffer.from(
  [
    '0000 01 00000000000000000000000000', // VER, CSATTR, reserved
    '0e000000000000000000000000000000', // NVMECSS: 14 dwords
    '01000000000000000000000000000000', // VSS: 1 dword
    '0100 0100 0100 0000', // VER, NIOSQ, NIOCQ, reserved
    '00f0deac00000000 ff03 0200 0300 0500 1100 1200 00000000', // submission queue
    '0020000010000000 1f00 0300 0700 0800 0700 0900 00000000', // completion queue
    'deadbeef', // vendor specific
  ]
    .join('')
    .replaceAll(' ', ''),
  'hex',
);
const STATE: NvmeControllerState = {
  version: 0,
  suspended: true,
  nvme: {
    version: 1,
    submissionQueues: [
      {
        prp1: 0xacdef000,
        qsize: 1023,
        id: 2,
        completionQueue: 3,
        head: 17,
        tail: 18,
        physicallyContiguous: true,
        priority: 2,
      },
    ],
    completionQueues: [
      {
        prp1: 0x1000002000,
        qsize: 31,
        id: 3,
        head: 7,
        tail: 8,
        physicallyContiguous: true,
        interruptsEnabled: true,
        vector: 9,
        slot0Phase: 1,
      },
    ],
  },
  vendor: Uint8Array.of(0xde, 0xad, 0xbe, 0xef),
};

const u16 = fc.integer({ min: 0, max: 0xffff });
const queue = {
  prp1: fc.maxSafeNat(),
  qsize: u16,
  id: u16,
  head: u16,
  tail: u16,
  physicallyContiguous: fc.boolean(),
};
const list = <T>(item: fc.Arbitrary<T>) => fc.array(item, { maxLength: 5 });
const version = fc.constantFrom(0, 1);
const anyState: fc.Arbitrary<NvmeControllerState> = fc.record({
  version,
  suspended: fc.boolean(),
  nvme: fc.option(
    fc.record({
      version,
      submissionQueues: list(
        fc.record({ ...queue, completionQueue: u16, priority: fc.integer({ min: 0, max: 3 }) }),
      ),
      completionQueues: list(
        fc.record({
          ...queue,
          interruptsEnabled: fc.boolean(),
          vector: u16,
          slot0Phase: fc.integer({ min: 0, max: 1 }),
        }),
      ),
    }),
  ),
  vendor: fc.nat(20).chain((dwords) => fc.uint8Array({ minLength: 4 * dwords, maxLength: 4 * dwords })),
});

/** Whatever the order of names and the prototypes. */
const same = (a: unknown, b: unknown): boolean => isDeepStrictEqual(structuredClone(a), structuredClone(b));

t.test('bytes by hand', async (t) => {
  t.same(decodeControllerState(BYTES), STATE);
  t.equal(Buffer.from(encodeControllerState(STATE)).toString('hex'), BYTES.toString('hex'));
  const empty = encodeControllerState({ ...STATE, nvme: null, vendor: new Uint8Array(0) });
  t.equal(Buffer.from(empty).toString('hex'), `000001${'00'.repeat(45)}`);
  t.same(decodeControllerState(empty).nvme, null);
  const bytes = Buffer.from(BYTES);
  const { vendor } = decodeControllerState(bytes);
  bytes.fill(0);
  t.same(vendor, STATE.vendor, 'nothing is shared');
});

t.test('property: there and back', async () => {
  fc.assert(
    fc.property(anyState, (state) => {
      const bytes = encodeControllerState(state);
      const decoded = decodeControllerState(bytes);
      return same(decoded, state) && Buffer.compare(encodeControllerState(decoded), bytes) === 0;
    }),
  );
});

t.test('property: bytes that are taken are given back, others are refused by name', async (t) => {
  const refusals = new Set<string>();
  let taken = 0;
  const sample = fixture('foreign/nvme-controller-state.bin').subarray(0, 140);
  const edit = fc.tuple(fc.nat(BYTES.length - 1), fc.integer({ min: 0, max: 255 }));
  const attempt = (bytes: Uint8Array): boolean => {
    try {
      const again = encodeControllerState(decodeControllerState(bytes));
      taken++;
      return Buffer.compare(again, bytes) === 0;
    } catch (error) {
      if (!(error instanceof DevstateError)) return false;
      refusals.add(error.code);
      return true;
    }
  };
  fc.assert(
    fc.property(
      fc.constantFrom(BYTES, sample),
      fc.array(edit, { maxLength: 3 }),
      fc.nat(200),
      (from, edits, cut) => {
        const bytes = Buffer.from(from);
        for (const [at, value] of edits) bytes[at] = value;
        return attempt(bytes) && attempt(bytes.subarray(0, cut));
      },
    ),
    { numRuns: 2000 },
  );
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), attempt));
  t.ok(taken > 200);
  t.same([...refusals].sort(), ['DEVSTATE_E_FORMAT_VERSION', 'DEVSTATE_E_STATE_RECORD']);
  for (let length = 0; length < BYTES.length; length++) {
    t.throws(() => decodeControllerState(BYTES.subarray(0, length)), { code: 'DEVSTATE_E_STATE_RECORD' });
  }
});

t.test('what cannot be is named', async (t) => {
  const refused: [offset: number, bytes: number[], message: RegExp, code?: string][] = [
    [0, [2], /the structure is version 2/, 'DEVSTATE_E_FORMAT_VERSION'],
    [48, [9], /the NVMe Controller State is version 9/, 'DEVSTATE_E_FORMAT_VERSION'],
    [2, [3], /CSATTR/],
    [15, [1], /bytes 3 to 15/],
    [16, [13], /says/],
    [24, [1], /NVMECSS is beyond/],
    [23, [1], /NVMECSS is beyond/],
    [40, [1], /VSS is beyond/],
    [50, [2], /2 submission and 1 completion queues/],
    [54, [1], /bytes 6 and 7/],
    [56 + 7, [1], /submission queue 2: PRP1/],
    [56 + 14, [8], /submission queue 2: reserved attributes/],
    [56 + 20, [1], /end of submission queue 2/],
    [80 + 16, [8], /completion queue 3: reserved attributes/],
    [80 + 23, [1], /end of completion queue 3/],
  ];
  for (const [offset, values, message, code = 'DEVSTATE_E_STATE_RECORD'] of refused) {
    const bytes = Buffer.from(BYTES);
    bytes.set(values, offset);
    t.throws(() => decodeControllerState(bytes), { code, message }, `byte ${offset}`);
  }
  t.throws(() => decodeControllerState(Buffer.concat([BYTES, Buffer.alloc(4)])), {
    message: /bytes, its header/,
  });
  const tiny = Buffer.from(BYTES.subarray(0, 52));
  tiny.set([1], 16);
  tiny.set([0], 32);
  t.throws(() => decodeControllerState(tiny), { message: /leaves 4 bytes/ });
  const [submission, completion] = [STATE.nvme!.submissionQueues[0]!, STATE.nvme!.completionQueues[0]!];
  const unfit: [NvmeControllerState, RegExp][] = [
    [{ ...STATE, version: 65536 }, /version/],
    [{ ...STATE, vendor: new Uint8Array(3) }, /dwords/],
    [{ ...STATE, nvme: { ...STATE.nvme!, submissionQueues: [{ ...submission, prp1: 2 ** 53 }] } }, /prp1/],
    [{ ...STATE, nvme: { ...STATE.nvme!, submissionQueues: [{ ...submission, priority: 4 }] } }, /priority/],
    [{ ...STATE, nvme: { ...STATE.nvme!, submissionQueues: [{ ...submission, head: -1 }] } }, /head/],
    [{ ...STATE, nvme: { ...STATE.nvme!, completionQueues: [{ ...completion, vector: 0.5 }] } }, /vector/],
    [
      { ...STATE, nvme: { ...STATE.nvme!, completionQueues: [{ ...completion, slot0Phase: 2 }] } },
      /slot0Phase/,
    ],
  ];
  for (const [state, message] of unfit) {
    t.throws(() => encodeControllerState(state), { code: 'DEVSTATE_E_STATE_VALUE', message });
  }
});

t.test('as records: there and back, with and without what a vendor adds', async (t) => {
  fc.assert(
    fc.property(anyState, fc.boolean(), (state, named) => {
      const tagged = { state, vendorFormat: named ? newUuid() : null };
      const again = decodeControllerStateRecords(encodeControllerStateRecords(tagged));
      return same(again, tagged);
    }),
    { numRuns: 50 },
  );
  const records = encodeControllerStateRecords({ state: STATE, vendorFormat: null });
  t.same(
    records.map(({ type, payload }) => [type, payload.length]),
    [
      [0x10000, 104],
      [0x10002, 4],
    ],
  );
  const split = [
    records[0]!,
    { ...records[1]!, payload: Uint8Array.of(0xde) },
    { ...records[1]!, payload: Uint8Array.of(0xad, 0xbe, 0xef) },
  ];
  t.same(decodeControllerStateRecords(split).state, STATE, 'the vendor’s part may come in pieces');
});

t.test('as records: what is missing, twice or unknown', async (t) => {
  const vendorFormat = parseUuid('00112233-4455-6677-8899-aabbccddeeff');
  const records = encodeControllerStateRecords({ state: STATE, vendorFormat });
  const [structure, uuid, vendor] = records as [
    (typeof records)[0],
    (typeof records)[0],
    (typeof records)[0],
  ];
  const unknown = { type: 0x10099, optional: true, payload: new Uint8Array(1) };
  t.same(decodeControllerStateRecords([unknown, ...records]), { state: STATE, vendorFormat });
  const refused: [(typeof records)[0][], RegExp][] = [
    [[], /no record structure/],
    [[structure], /bytes, its header says/],
    [[structure, structure, vendor], /structure came twice/],
    [[structure, uuid, uuid, vendor], /vendorFormat came twice/],
    [[structure, vendor, { ...uuid, payload: new Uint8Array(15) }], /a UUID of 15/],
    [[...records, { ...unknown, optional: false }], /0x10099 is not known/],
  ];
  for (const [list, message] of refused) {
    t.throws(() => decodeControllerStateRecords(list), { code: 'DEVSTATE_E_STATE_RECORD', message });
  }
});

t.test('described for people', async (t) => {
  const { describe, recordName, uuid } = controllerStateDescription;
  t.equal(uuid, NVME_CONTROLLER_STATE.uuid);
  const version = { major: 1, minor: 0 };
  const vendorFormat = newUuid();
  const [structure, tag, vendor] = encodeControllerStateRecords({ state: STATE, vendorFormat });
  t.same(
    [structure, tag, vendor].map((record) => recordName(record!.type)),
    ['structure', 'vendorFormat', 'vendor'],
  );
  t.equal(recordName(0x10003), undefined);
  t.same(describe?.(0x10000, structure!.payload, version), {
    version: 0,
    suspended: true,
    vendorLength: 4,
    nvmeVersion: 1,
    submissionQueues: [...STATE.nvme!.submissionQueues],
    completionQueues: [...STATE.nvme!.completionQueues],
  });
  t.same(describe?.(0x10001, tag!.payload, version), { uuid: vendorFormat });
  t.same(describe?.(0x10002, vendor!.payload, version), { length: 4, first: 'deadbeef' });
  const many = Array.from({ length: 65535 }, () => STATE.nvme!.completionQueues[0]!);
  const [big] = encodeControllerStateRecords({
    state: { ...STATE, nvme: { version: 1, submissionQueues: [], completionQueues: many } },
    vendorFormat: null,
  });
  const fields = describe?.(0x10000, big!.payload, version);
  const shown = fields?.completionQueues;
  t.equal(Array.isArray(shown) && shown.at(-1), '… 65279 more');
  t.ok(JSON.stringify(fields).length < 100_000);
});
