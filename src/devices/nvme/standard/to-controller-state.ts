// SPDX-License-Identifier: Apache-2.0
/** From the standard format to the Controller State data structure of NVMe 2.1, which holds the I/O queues and no more. */
import { asDevstateError, DevstateError } from '../../../errors.js';
import {
  CONTROLLER_STATE_FORMAT_VERSION,
  type Converter,
  decodeNvmeState,
  encodeControllerStateRecords,
  type FormatRecord,
  NVME_CONTROLLER_STATE,
  NVME_STANDARD,
  NVME_STANDARD_VERSION,
  type NvmeCompletionQueue,
  type NvmeControllerState,
  type NvmeIoCompletionQueue,
  type NvmeIoSubmissionQueue,
  type NvmeState,
  NvmeStateDecoder,
  type NvmeSubmissionQueue,
} from '../../../formats/index.js';

/** VER of the whole and of the NVMe Controller State, as they are written. */
const STRUCTURE_VERSION = 0;
const NVME_VERSION = 1;

export const standardToControllerState: Converter = {
  from: { uuid: NVME_STANDARD.uuid, name: NVME_STANDARD.name, major: NVME_STANDARD_VERSION.major },
  to: {
    uuid: NVME_CONTROLLER_STATE.uuid,
    name: NVME_CONTROLLER_STATE.name,
    version: CONTROLLER_STATE_FORMAT_VERSION,
  },
  losses: [
    'the identity of the controller and its namespaces',
    'the controller registers and the admin queues',
    'the PCI configuration space and the MSI-X table',
    'commands in flight',
    'completions that wait for room in their queue',
    'features',
    'asynchronous event requests and events',
    'the health counters',
  ],
  begin: () => {
    const records: FormatRecord[] = [];
    return {
      record: (record) => {
        if (!NvmeStateDecoder.knows(record.type)) return undefined;
        records.push({ ...record, payload: new Uint8Array(record.payload) });
        return [];
      },
      end: () => converted(records),
    };
  },
};

function converted(records: readonly FormatRecord[]): FormatRecord[] {
  try {
    return encodeControllerStateRecords({
      state: controllerStateOf(decodeNvmeState(records)),
      vendorFormat: null,
    });
  } catch (cause) {
    const { message } = asDevstateError(cause);
    const what = `a state of ${NVME_STANDARD.name} cannot become one of ${NVME_CONTROLLER_STATE.name}: ${message}`;
    throw new DevstateError('DEVSTATE_E_CONVERSION', what, { cause });
  }
}

/** What the structure can hold of a state. A state is saved while the controller stands still: it is suspended. */
export function controllerStateOf(state: NvmeState): NvmeControllerState {
  const isIo = ({ id }: { readonly id: number }) => id !== 0;
  return {
    version: STRUCTURE_VERSION,
    suspended: true,
    nvme: {
      version: NVME_VERSION,
      submissionQueues: state.submissionQueues.filter(isIo).map(submissionQueueOf),
      completionQueues: state.completionQueues.filter(isIo).map(completionQueueOf),
    },
    vendor: new Uint8Array(0),
  };
}

function submissionQueueOf(queue: NvmeSubmissionQueue): NvmeIoSubmissionQueue {
  const { id, base, entries, head, tail, physicallyContiguous, completionQueue, priority } = queue;
  return { prp1: base, qsize: entries - 1, id, head, tail, physicallyContiguous, completionQueue, priority };
}

function completionQueueOf(queue: NvmeCompletionQueue): NvmeIoCompletionQueue {
  const { id, base, entries, head, tail, physicallyContiguous, phase, vector, interruptsEnabled } = queue;
  // `phase` is that of the next entry. Slot 0 has it if this pass over the queue has written it, which is once tail > 0.
  const slot0Phase = tail > 0 ? phase : 1 - phase;
  return {
    prp1: base,
    qsize: entries - 1,
    id,
    head,
    tail,
    physicallyContiguous,
    interruptsEnabled,
    vector,
    slot0Phase,
  };
}
