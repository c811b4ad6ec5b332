// SPDX-License-Identifier: Apache-2.0
/**
 * State of a HiSilicon accelerator's virtual function, from Linux's hisi-acc-vfio-pci (`struct acc_vf_data` in
 * drivers/vfio/pci/hisilicon/hisi_acc_vfio_pci.h), little endian:
 *
 *       0 │ match block, 40 bytes: magic, and what must be the same in both devices; sent during pre-copy │
 *      40 │ registers, 104 bytes │ DMA addresses, 32 bytes; neither if the guest's driver had not set the device up │
 *
 * The magic number is the version: V2 has its own inside as well.
 */

import { fieldsOf, type Layout, listOf } from './layout.js';
import { damaged, unsupported } from './section-context.js';
import { walkedKind } from './walk-reader.js';
import { structure } from './walk-steps.js';

const MAGIC_V1 = 0xcdcdcdcdfeedaaccn;
const MAGIC_V2 = 0xaaccfeeddecadeden;
const MAJOR_VERSION = 1;

const MATCH_LENGTH = 40;
const MATCH: Layout = [
  ['queuePairs', 'u32', 8],
  ['deviceId', 'u32', 12],
  ['queueIsolationConfig', 'u32', 16],
  ['queuePairBase', 'u32', 20],
  ['queueManagerState', 'u32', 24],
];
const MATCH_V2: Layout = [
  ['major', 'u16', 28],
  ['minor', 'u16', 30],
];
const REGISTERS_LENGTH = 104;
const REGISTERS: Layout = [
  ['aeqInterruptMask', 'u32', 0],
  ['eqInterruptMask', 'u32', 4],
  ['ifcInterruptSource', 'u32', 8],
  ['ifcInterruptMask', 'u32', 12],
  ['ifcInterruptSet', 'u32', 16],
  ['pageSize', 'u32', 20],
];
/** Words of the event queue's and the asynchronous event queue's context. */
const EventQueue = { start: 24, end: 52 } as const;
const AsyncEventQueue = { start: 52, end: 80 } as const;
const ADDRESSES_LENGTH = 32;
const ADDRESSES: Layout = [
  ['eqe', 'u64', 0],
  ['aeqe', 'u64', 8],
  ['sqc', 'u64', 16],
  ['cqc', 'u64', 24],
];

export const hisiAccKind = walkedKind({
  name: 'hisi-acc',
  title: 'Linux hisi-acc-vfio-pci device state',
  probeLength: 8,
  matches: (first) => first.length >= 8 && versionOf(Buffer.from(first)) !== undefined,
  *walk(context) {
    const { input, fields } = context;
    const start = input.offset;
    let major = MAJOR_VERSION;
    yield* structure(context, 'match', MATCH_LENGTH, (bytes) => {
      const version = versionOf(bytes);
      if (version === undefined) throw damaged(start, 'it does not begin with a magic number of hisi-acc');
      fields.version = version;
      if (version === 2) major = bytes.readUInt16LE(28);
      return { ...fieldsOf(MATCH, bytes), ...(version === 2 ? fieldsOf(MATCH_V2, bytes) : {}) };
    });
    if (major !== MAJOR_VERSION) throw unsupported(start, `it is of version ${major}, not ${MAJOR_VERSION}`);
    if ((yield* input.reach(1)) === 0) return;
    yield* structure(context, 'registers', REGISTERS_LENGTH, (bytes) => ({
      ...fieldsOf(REGISTERS, bytes),
      eventQueueContext: listOf('u32', bytes.subarray(EventQueue.start, EventQueue.end)),
      asyncEventQueueContext: listOf('u32', bytes.subarray(AsyncEventQueue.start, AsyncEventQueue.end)),
    }));
    yield* structure(context, 'dma addresses', ADDRESSES_LENGTH, (bytes) => fieldsOf(ADDRESSES, bytes));
  },
});

function versionOf(bytes: Buffer): 1 | 2 | undefined {
  const magic = bytes.readBigUInt64LE();
  return magic === MAGIC_V1 ? 1 : magic === MAGIC_V2 ? 2 : undefined;
}
