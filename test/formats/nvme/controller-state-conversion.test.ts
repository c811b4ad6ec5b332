// SPDX-License-Identifier: Apache-2.0
/** From the standard format to the Controller State data structure: what comes through, and what is said to be lost. */
import fc from 'fast-check';
import t from 'tap';
import { converters } from '../../../src/devices/catalogue.js';
import { controllerStateOf } from '../../../src/devices/nvme/standard/to-controller-state.js';
import {
  BlobConverter,
  decodeControllerStateRecords,
  decodeEnvelope,
  EnvelopeEncoder,
  encodeNvmeState,
  findPath,
  lossesOf,
  NVME_ALDER,
  NVME_CONTROLLER_STATE,
  NVME_STANDARD,
  type NvmeState,
  newUuid,
} from '../../../src/formats/index.js';
import { anyNvmeState } from './arbitrary.js';

const STANDARD = { uuid: NVME_STANDARD.uuid, major: 1 };
const TARGET = { uuid: NVME_CONTROLLER_STATE.uuid, major: 1 };

function convert(state: NvmeState): Buffer {
  const encoder = new EnvelopeEncoder({
    format: NVME_STANDARD.uuid,
    version: { major: 1, minor: 0 },
    model: 'devstate.org/nvme',
    parameters: {},
    producer: { name: 'test', version: '1' },
    stream: newUuid(),
    features: [],
    other: {},
  });
  const parts: Uint8Array[] = [encoder.header()];
  for (const { type, optional, payload } of encodeNvmeState(state)) {
    parts.push(...encoder.record(type, optional ? 1 : 0, payload));
  }
  parts.push(encoder.end());
  const written: Uint8Array[] = [];
  const converter = new BlobConverter({
    choose: () => findPath(STANDARD, TARGET, converters, { lossy: true }) ?? [],
    producer: { name: 'test', version: '1' },
    write: (bytes) => written.push(Uint8Array.from(bytes)),
  });
  converter.push(Buffer.concat(parts));
  converter.finish();
  return Buffer.concat(written);
}

t.test('there is a way only for who allows losses, and every loss is named', async (t) => {
  t.equal(findPath(STANDARD, TARGET, converters), undefined);
  const way = findPath({ uuid: NVME_ALDER.uuid, major: 1 }, TARGET, converters, { lossy: true });
  t.same(
    way?.map(({ to }) => to.name),
    ['org.devstate.nvme', 'org.nvmexpress.controller-state'],
  );
  const losses = lossesOf(way ?? []).join('; ');
  for (const lost of [
    /identity/,
    /registers/,
    /admin/,
    /PCI/,
    /MSI-X/,
    /flight/,
    /completions/,
    /features/,
    /event/,
    /health/,
  ]) {
    t.match(losses, lost);
  }
});

t.test('the I/O queues come through', async (t) => {
  const sample = fc.sample(anyNvmeState, { numRuns: 1, seed: 5 })[0]!;
  const common = { base: 0x1000, physicallyContiguous: true, entries: 64, head: 3 };
  const state: NvmeState = {
    ...sample,
    submissionQueues: [
      { ...common, id: 0, tail: 4, completionQueue: 0, priority: 0 },
      { ...common, id: 5, tail: 9, completionQueue: 6, priority: 3 },
    ],
    completionQueues: [
      { ...common, id: 0, tail: 0, phase: 1, vector: 0, interruptsEnabled: true },
      { ...common, id: 6, tail: 0, phase: 1, vector: 2, interruptsEnabled: false },
      { ...common, id: 7, tail: 1, phase: 1, vector: 3, interruptsEnabled: true },
    ],
  };
  const { header, records } = decodeEnvelope(convert(state));
  t.equal(header.format, NVME_CONTROLLER_STATE.uuid);
  t.equal(header.other.converted_from, 'org.devstate.nvme 1.0');
  const { state: converted, vendorFormat } = decodeControllerStateRecords(
    records.map(({ type, payload }) => ({ type, optional: false, payload })),
  );
  t.same(converted, {
    version: 0,
    suspended: true,
    vendor: new Uint8Array(0),
    nvme: {
      version: 1,
      submissionQueues: [
        {
          prp1: 0x1000,
          qsize: 63,
          id: 5,
          completionQueue: 6,
          head: 3,
          tail: 9,
          physicallyContiguous: true,
          priority: 3,
        },
      ],
      completionQueues: [
        {
          prp1: 0x1000,
          qsize: 63,
          id: 6,
          head: 3,
          tail: 0,
          physicallyContiguous: true,
          interruptsEnabled: false,
          vector: 2,
          slot0Phase: 0,
        },
        {
          prp1: 0x1000,
          qsize: 63,
          id: 7,
          head: 3,
          tail: 1,
          physicallyContiguous: true,
          interruptsEnabled: true,
          vector: 3,
          slot0Phase: 1,
        },
      ],
    },
  });
  t.equal(vendorFormat, null);
});

t.test('property: every state in its ranges converts', async () => {
  fc.assert(
    fc.property(anyNvmeState, (state) => {
      const { nvme } = controllerStateOf(state);
      convert(state);
      return nvme!.submissionQueues.length === state.submissionQueues.filter(({ id }) => id > 0).length;
    }),
    { numRuns: 50 },
  );
});
