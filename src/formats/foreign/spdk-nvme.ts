// SPDX-License-Identifier: Apache-2.0
/**
 * State of an NVMe controller of SPDK's vfio-user target, as releases 22.09 to 25.05 migrated it (lib/nvmf/vfio_user.c,
 * include/spdk/nvmf_transport.h): C structures in the byte order of the host.
 *
 *        0 │ header, 4096 bytes: magic, and where each of the following is │
 *     4096 │ state of the NVMe-oF controller, 4096 bytes: registers, features, asynchronous events │
 *          │ queue pairs, 56 bytes each, by queue identifier │ doorbells │ PCI configuration space │ zeros │
 *
 * Version and size in the header were never written. Releases 22.01 and 22.05 had other headers behind the same magic; where
 * the controller's state is tells them apart.
 */
import type { FieldMap } from '../fields.js';
import { fieldsOf, type Layout, listOf, u64At } from './layout.js';
import type { Pull } from './pushed-input.js';
import { damaged, unsupported } from './section-context.js';
import { type WalkContext, walkedKind } from './walk-reader.js';
import { structure, unknown, unused } from './walk-steps.js';

const MAGIC = 0xafedbc23;
const HEADER_LENGTH = 4096;
const CONTROLLER_LENGTH = 4096;
const QUEUE_PAIR_LENGTH = 56;
const DOORBELLS_LENGTH = 4096;
const CONFIG_LENGTH = 4096;
const REGIONS = 10;
const RegionIndex = { BAR0: 0, CONFIG: 7 } as const;

/** Offsets in the header. */
const Header = { reserved: 12, regionOffsets: 16, regionLengths: 96, controllerOffset: 200 } as const;
const HEADER: Layout = [
  ['magic', 'u32', 0],
  ['version', 'u32', 4],
  ['optsSize', 'u32', 8],
  ['queuePairsOffset', 'u64', 176],
  ['queuePairsLength', 'u64', 184],
  ['ioQueues', 'u32', 192],
];
/** What the header has from 22.09 on. */
const HEADER_2209: Layout = [
  ['controllerOffset', 'u64', Header.controllerOffset],
  ['controllerLength', 'u64', 208],
  ['shadowDoorbells', 'u32', 216],
  ['shadowDoorbellBuffer', 'u64', 224],
  ['eventIndexBuffer', 'u64', 232],
];

const CONTROLLER: Layout = [
  ['dataSize', 'u32', 0],
  ['registersSize', 'u32', 4],
  ['featuresSize', 'u32', 8],
  ['controllerId', 'u16', 528],
  ['advancedCommandRetry', 'u8', 530],
  ['noticeMask', 'u64', 1568],
];
const REGISTERS_OFFSET = 16;
const REGISTERS_LENGTH = 48;
const REGISTERS: Layout = [
  ['cap', 'u64', 0],
  ['vs', 'u32', 8],
  ['cc', 'u32', 12],
  ['csts', 'u32', 16],
  ['aqa', 'u32', 20],
  ['asq', 'u64', 24],
  ['acq', 'u64', 32],
  ['nssr', 'u32', 40],
];
const FEATURES_OFFSET = 272;
const FEATURES_LENGTH = 40;
const FEATURES: Layout = [
  'arbitration',
  'powerManagement',
  'errorRecovery',
  'volatileWriteCache',
  'numberOfQueues',
  'interruptCoalescing',
  'interruptVectorConfiguration',
  'writeAtomicity',
  'asyncEventConfiguration',
  'keepAliveTimer',
].map((name, index) => [name, 'u32', 4 * index] as const);
/** Requests whose command identifiers are kept, and events that wait for a request. */
const Requests = { count: 531, offset: 1560, maximum: 4 } as const;
const Events = { count: 532, offset: 536, maximum: 256 } as const;

const SUBMISSION_QUEUE: Layout = [
  ['id', 'u16', 0],
  ['completionQueue', 'u16', 2],
  ['head', 'u32', 4],
  ['size', 'u32', 8],
  ['address', 'u64', 16],
];
const COMPLETION_QUEUE: Layout = [
  ['id', 'u16', 24],
  ['phase', 'u16', 26],
  ['tail', 'u32', 28],
  ['size', 'u32', 32],
  ['vector', 'u32', 36],
  ['interruptsEnabled', 'u32', 40],
  ['address', 'u64', 48],
];
const DOORBELLS_SHOWN = 128;

const PCI_CONFIG: Layout = [
  ['vendorId', 'u16', 0],
  ['deviceId', 'u16', 2],
  ['command', 'u16', 4],
  ['status', 'u16', 6],
];

/** A range of bytes that the header tells of. */
interface Region {
  readonly name: string;
  /** From the start of the content. */
  readonly start: number;
  readonly length: number;
  walk(): Pull<void>;
}

export const spdkNvmeKind = walkedKind({
  name: 'spdk-nvme',
  title: 'SPDK NVMe vfio-user migration data',
  probeLength: 16,
  matches(first) {
    if (first.length < 16) return false;
    const view = new DataView(first.buffer, first.byteOffset, first.length);
    return view.getUint32(0, true) === MAGIC && view.getUint32(Header.reserved, true) === 0;
  },
  *walk(context) {
    const { input, fields } = context;
    let regions: Region[] = [];
    yield* structure(context, 'header', HEADER_LENGTH, (bytes) => {
      if (bytes.readUInt32LE(0) !== MAGIC)
        throw damaged(input.offset, 'it does not begin with SPDK’s magic number');
      const known = u64At(bytes, Header.controllerOffset) === HEADER_LENGTH;
      fields.layout = known ? '22.09' : null;
      if (known) regions = regionsOf(context, bytes);
      return { ...fieldsOf(HEADER, bytes), ...(known ? fieldsOf(HEADER_2209, bytes) : {}) };
    });
    if (fields.layout === null) {
      throw unsupported(
        input.offset,
        'the header is not that of SPDK 22.09 or later, and its regions are not followed',
      );
    }
    const { origin } = input;
    for (const region of regions.sort((a, b) => a.start - b.start)) {
      const gap = origin + region.start - input.offset;
      if (!(gap >= 0) || !Number.isSafeInteger(region.start + region.length)) {
        throw damaged(
          input.offset,
          `the header puts the region ${region.name} at ${region.start}, where it cannot be`,
        );
      }
      yield* unknown(context, null, gap);
      yield* region.walk();
    }
    yield* unused(context);
  },
});

/** The regions that are not empty, as the header has them. */
function regionsOf(context: WalkContext, header: Buffer): Region[] {
  const region = (
    name: string,
    [start, length]: readonly [number, number],
    walk = () => unknown(context, name, length),
  ) => ({ name, start, length, walk });
  const expected = (
    name: string,
    length: number,
    expectedLength: number,
    describe: (bytes: Buffer) => FieldMap,
  ) => (length === expectedLength ? () => structure(context, name, length, describe) : undefined);
  const pair = (offset: number) => [u64At(header, offset), u64At(header, offset + 8)] as const;
  const bar = (index: number) =>
    [
      u64At(header, Header.regionOffsets + 8 * index),
      u64At(header, Header.regionLengths + 8 * index),
    ] as const;

  const controller = pair(Header.controllerOffset);
  const queuePairs = pair(176);
  const doorbells = bar(RegionIndex.BAR0);
  const config = bar(RegionIndex.CONFIG);
  const others = Array.from({ length: REGIONS }, (_, index) => index).filter(
    (index) => index !== RegionIndex.BAR0 && index !== RegionIndex.CONFIG,
  );
  const all: Region[] = [
    region(
      'controller',
      controller,
      expected('controller', controller[1], CONTROLLER_LENGTH, describeController),
    ),
    region('queue pairs', queuePairs, () => walkQueuePairs(context, queuePairs[1])),
    region('doorbells', doorbells, expected('doorbells', doorbells[1], DOORBELLS_LENGTH, describeDoorbells)),
    region(
      'pci configuration space',
      config,
      expected('pci configuration space', config[1], CONFIG_LENGTH, (bytes) => fieldsOf(PCI_CONFIG, bytes)),
    ),
    ...others.map((index) => region(`region ${index}`, bar(index))),
  ];
  return all.filter(({ length }) => length !== 0);
}

function describeController(bytes: Buffer): FieldMap {
  const { dataSize, registersSize, featuresSize, ...rest } = fieldsOf(CONTROLLER, bytes);
  const requests = Math.min(bytes.readUInt8(Requests.count), Requests.maximum);
  const events = Math.min(bytes.readUInt32LE(Events.count), Events.maximum);
  return {
    dataSize: dataSize!,
    registersSize: registersSize!,
    featuresSize: featuresSize!,
    ...(registersSize === REGISTERS_LENGTH
      ? { registers: fieldsOf(REGISTERS, bytes, REGISTERS_OFFSET) }
      : {}),
    ...(featuresSize === FEATURES_LENGTH ? { features: fieldsOf(FEATURES, bytes, FEATURES_OFFSET) } : {}),
    ...rest,
    asyncEvents: listOf('u32', bytes.subarray(Events.offset, Events.offset + 4 * events)),
    asyncEventRequests: listOf('u16', bytes.subarray(Requests.offset, Requests.offset + 2 * requests)),
  };
}

/** A pair of zeros is of an identifier that has no queues. */
function* walkQueuePairs(context: WalkContext, length: number): Pull<void> {
  const { input, tree } = context;
  tree.begin('queue pairs', input.offset);
  for (let index = 0; index < Math.floor(length / QUEUE_PAIR_LENGTH); index++) {
    yield* structure(context, `queue pair ${index}`, QUEUE_PAIR_LENGTH, (bytes) => ({
      submissionQueue: fieldsOf(SUBMISSION_QUEUE, bytes),
      completionQueue: fieldsOf(COMPLETION_QUEUE, bytes),
    }));
  }
  yield* unknown(context, null, length % QUEUE_PAIR_LENGTH);
  tree.end(input.offset);
}

/** For each queue identifier in turn: tail of the submission queue, head of the completion queue. */
function describeDoorbells(bytes: Buffer): FieldMap {
  const values = listOf('u32', bytes);
  const last = values.findLastIndex((value) => value !== 0);
  const shown = values.slice(0, Math.min(2 * Math.ceil((last + 1) / 2), DOORBELLS_SHOWN));
  return {
    submissionTails: shown.filter((_, index) => index % 2 === 0),
    completionHeads: shown.filter((_, index) => index % 2 === 1),
  };
}
