// SPDX-License-Identifier: Apache-2.0
/** The state of a PCI function: bytes, what is refused, and where it comes from. */
import fc from 'fast-check';
import t from 'tap';
import { converters } from '../../../src/devices/catalogue.js';
import {
  decodePciFunction,
  encodeNvmeState,
  encodePciFunction,
  findPath,
  NVME_BIRCH,
  PCI_FUNCTION,
  pciFunctionDescription,
} from '../../../src/formats/index.js';
import { codeThrownBy } from '../blobs.js';
import { anyNvmeState } from '../nvme/arbitrary.js';

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const sound = {
  config: new Uint8Array(256).fill(1),
  msixTable: new Uint8Array(32).fill(2),
  msixPending: new Uint8Array(8),
};

t.test('the bytes of a record', async (t) => {
  const [record] = encodePciFunction(sound);
  t.match(record, { type: 0x10000, optional: false });
  t.equal(
    hex(record!.payload),
    `0a8002${'01'.repeat(256)}1220${'02'.repeat(32)}1a08${'00'.repeat(8)}`,
    'fields 1, 2 and 3, length-delimited',
  );
  t.same(Object.keys(pciFunctionDescription.describe!(0x10000, record!.payload, { major: 1, minor: 0 })!), [
    'config',
    'msixTable',
    'msixPending',
  ]);
  t.equal(pciFunctionDescription.recordName(0x10001), undefined);
});

t.test('there and back', async (t) => {
  const state = fc
    .tuple(fc.constantFrom(256, 4096), fc.integer({ min: 0, max: 2048 }), fc.nat(255))
    .map(([config, vectors, fill]) => ({
      config: new Uint8Array(config).fill(fill),
      msixTable: new Uint8Array(vectors * 16).fill(fill),
      msixPending: new Uint8Array(Math.ceil(vectors / 64) * 8).fill(fill),
    }));
  fc.assert(
    fc.property(state, (state) => {
      const back = decodePciFunction(encodePciFunction(state));
      return (['config', 'msixTable', 'msixPending'] as const).every(
        (part) => hex(back[part]) === hex(state[part]),
      );
    }),
    { numRuns: 50 },
  );
  t.pass();
});

t.test('what is no state is refused by name', async (t) => {
  const cases: [string, Partial<typeof sound>][] = [
    ['a short configuration space', { config: new Uint8Array(255) }],
    ['one between the two', { config: new Uint8Array(512) }],
    ['half a vector', { msixTable: new Uint8Array(40) }],
    ['more vectors than can be', { msixTable: new Uint8Array(2049 * 16), msixPending: new Uint8Array(264) }],
    ['too few pending bits', { msixPending: new Uint8Array(0) }],
    ['too many', { msixPending: new Uint8Array(16) }],
    ['pending bits without vectors', { msixTable: new Uint8Array(0) }],
  ];
  for (const [name, changes] of cases) {
    const records = encodePciFunction({ ...sound, ...changes });
    t.equal(
      codeThrownBy(() => decodePciFunction(records)),
      'DEVSTATE_E_STATE_RECORD',
      name,
    );
  }
  const [record] = encodePciFunction(sound);
  const code = (...records: Parameters<typeof decodePciFunction>) =>
    codeThrownBy(() => decodePciFunction(...records));
  t.equal(code([]), 'DEVSTATE_E_STATE_RECORD', 'none');
  t.equal(code([record!, record!]), 'DEVSTATE_E_STATE_RECORD', 'twice');
  t.equal(
    code([record!, { ...record!, type: 0x10001 }]),
    'DEVSTATE_E_STATE_RECORD',
    'a mandatory one that is unknown',
  );
  t.equal(
    code([record!, { ...record!, type: 0x10001, optional: true }]),
    '',
    'an optional one that is unknown',
  );
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (payload) => {
      const thrown = code([{ type: 0x10000, optional: false, payload }]);
      return thrown === '' || thrown === 'DEVSTATE_E_STATE_RECORD';
    }),
  );
});

t.test('from the state of a controller, if what is left behind may be lost', async (t) => {
  const to = { uuid: PCI_FUNCTION.uuid, major: 1 };
  const from = { uuid: NVME_BIRCH.uuid, major: 1 };
  t.equal(findPath(from, to, converters), undefined);
  const way = findPath(from, to, converters, { lossy: true });
  t.equal(way?.at(-1)?.to.name, PCI_FUNCTION.name);
  t.match(way?.at(-1)?.losses, [/everything of the controller but its PCI/]);
  for (const state of fc.sample(anyNvmeState, 20)) {
    const conversion = way!.at(-1)!.begin({} as never);
    for (const record of encodeNvmeState(state)) t.same([...(conversion.record(record) ?? [])], []);
    const records = [...conversion.end()];
    // A controller's own rules are not those of the format: what the sample has is what comes out.
    t.equal(hex(records[0]!.payload), hex(encodePciFunction(state.pci)[0]!.payload));
  }
});
