// SPDX-License-Identifier: Apache-2.0
/** The image as the vendor-neutral `NvmeState`. By values alone: no controller is needed. */

import type { StateRecord } from '../../../device/index.js';
import type {
  NvmeCommand,
  NvmeCompletion,
  NvmeCompletionQueue,
  NvmeEvents,
  NvmeFeature,
  NvmeHealth,
  NvmeIdentity,
  NvmeState,
  NvmeSubmissionQueue,
} from '../../../formats/index.js';
import { FeatureId, NSID, Register, SQ_ENTRY_SIZE, savedAddress } from '../spec/index.js';
import { type ControllerImage, commandAt, completionAt, submissionAt } from './controller-image.js';
import { coalescingDisabled, FeatureBit, queueCount } from './features.js';
import { readErrors } from './health.js';
import { readIdentity } from './identity.js';
import {
  CONFIG_AT,
  CONFIG_SIZE,
  CommandSlot,
  CommandState,
  CompletionSlot,
  EVENT_SIZE,
  Events,
  FEATURE_WORDS,
  Header,
  HealthCounter,
  OVER_TEMPERATURE_AT,
  PENDING_BITS_AT,
  QUEUE_SLOTS,
  QueueSlot,
  QueueState,
  REGISTERS_AT,
  SubmissionSlot,
  UNDER_TEMPERATURE_AT,
  VECTOR_SIZE,
  VECTORS_AT,
} from './layout.js';
import { commandsInOrder, RecordCollector } from './records.js';
import { refused } from './refused.js';
import { imageProblem } from './validate.js';

/** The records of a state of format `org.devstate.nvme.birch` as a value. @throws RequestError EINVAL when they are not sound */
export function birchToStandard(records: Iterable<StateRecord>): NvmeState {
  const collector = new RecordCollector();
  for (const record of records) collector.add(record);
  const image = collector.toImage();
  const problem = imageProblem(image);
  if (problem !== undefined) throw refused(problem);
  return imageToStandard(image);
}

/** A sound image, quiesced, as a value that shares no memory with it. */
export function imageToStandard(image: ControllerImage): NvmeState {
  const vectors = image.u32(Header.VECTORS);
  return {
    identity: identity(image),
    pci: {
      config: image.span(CONFIG_AT, CONFIG_SIZE).slice(),
      msixTable: image.span(VECTORS_AT, vectors * VECTOR_SIZE).slice(),
      msixPending: image.span(PENDING_BITS_AT, 8 * Math.ceil(vectors / 64)).slice(),
    },
    registers: {
      cc: image.register(Register.CC),
      csts: image.register(Register.CSTS),
      interruptMask: image.register(Register.INTMS),
      aqa: image.register(Register.AQA),
      asq: savedAddress(image.u64(REGISTERS_AT + Register.ASQ)),
      acq: savedAddress(image.u64(REGISTERS_AT + Register.ACQ)),
    },
    submissionQueues: presentQueues(image, submissionAt, submissionQueue),
    completionQueues: presentQueues(image, completionAt, completionQueue),
    completions: commandsOf(image, CommandState.DUE).map((slot) => completion(image, slot)),
    commands: commandsOf(image, CommandState.FETCHED).map((slot) => command(image, slot)),
    features: features(image, vectors),
    events: events(image),
    health: health(image),
  };
}

function identity(image: ControllerImage): NvmeIdentity {
  const { controllerId, parameters, nguid, eui64 } = readIdentity(image);
  const { namespace_size: size, lba_size: lbaSize } = parameters;
  return {
    controllerId,
    serial: parameters.serial,
    modelNumber: parameters.model_number,
    firmware: parameters.firmware,
    queues: parameters.queues,
    msixVectors: parameters.msix_vectors,
    queueEntries: parameters.queue_entries,
    mdts: parameters.mdts,
    namespaces: [{ id: NSID, size, lbaSize, nguid, eui64 }],
  };
}

function presentQueues<Queue>(
  image: ControllerImage,
  slotAt: (id: number) => number,
  describe: (image: ControllerImage, at: number) => Queue,
): Queue[] {
  const queues: Queue[] = [];
  for (let id = 0; id < QUEUE_SLOTS; id++) {
    const at = slotAt(id);
    if (image.u8(at + QueueSlot.STATE) !== QueueState.ABSENT) queues.push(describe(image, at));
  }
  return queues;
}

function queue(image: ControllerImage, at: number) {
  return {
    id: image.u16(at + QueueSlot.ID),
    base: image.u64(at + QueueSlot.BASE),
    entries: image.u32(at + QueueSlot.ENTRIES),
    head: image.u32(at + QueueSlot.HEAD),
    tail: image.u32(at + QueueSlot.TAIL),
    physicallyContiguous: true,
  };
}

function submissionQueue(image: ControllerImage, at: number): NvmeSubmissionQueue {
  return {
    ...queue(image, at),
    completionQueue: image.u16(at + SubmissionSlot.CQID),
    priority: image.u8(at + SubmissionSlot.PRIORITY),
  };
}

function completionQueue(image: ControllerImage, at: number): NvmeCompletionQueue {
  return {
    ...queue(image, at),
    phase: image.u8(at + CompletionSlot.PHASE),
    vector: image.u16(at + CompletionSlot.VECTOR),
    interruptsEnabled: image.u8(at + CompletionSlot.INTERRUPTS) !== 0,
  };
}

/** Slots of one state, oldest first. */
function commandsOf(image: ControllerImage, state: number): number[] {
  return commandsInOrder(image).filter((slot) => image.u8(commandAt(slot) + CommandSlot.STATE) === state);
}

function completion(image: ControllerImage, slot: number): NvmeCompletion {
  const at = commandAt(slot);
  return {
    submissionQueue: image.sqid(slot),
    commandId: image.cid(slot),
    status: image.u16(at + CommandSlot.STATUS),
    result: image.u32(at + CommandSlot.RESULT),
  };
}

function command(image: ControllerImage, slot: number): NvmeCommand {
  const entry = image.span(commandAt(slot) + CommandSlot.ENTRY, SQ_ENTRY_SIZE).slice();
  return { submissionQueue: image.sqid(slot), entry };
}

/** In order of identifier, those with a selector once for each thing selected. */
function features(image: ControllerImage, vectors: number): NvmeFeature[] {
  const values: [id: number, value: number][] = FEATURE_WORDS.map(({ id, at }) => [id, image.u32(at)]);
  values.push(
    [FeatureId.TEMPERATURE_THRESHOLD, image.u32(OVER_TEMPERATURE_AT)],
    [FeatureId.TEMPERATURE_THRESHOLD, image.u32(UNDER_TEMPERATURE_AT) | FeatureBit.UNDER_TEMPERATURE],
    [FeatureId.NUMBER_OF_QUEUES, queueCount(image.u32(Header.QUEUES))],
  );
  for (let vector = 0; vector < vectors; vector++) {
    const disabled = coalescingDisabled(image, vector) ? FeatureBit.COALESCING_DISABLED : 0;
    values.push([FeatureId.INTERRUPT_VECTOR_CONFIGURATION, vector | disabled]);
  }
  values.sort(([a], [b]) => a - b);
  return values.map(([id, value]) => ({ id, namespace: 0, value, data: new Uint8Array(0) }));
}

function events(image: ControllerImage): NvmeEvents {
  const pending = Array.from({ length: image.u8(Events.COUNT) }, (_, index) => {
    const at = Events.SLOTS + index * EVENT_SIZE;
    return { type: image.u8(at), information: image.u8(at + 1), logPage: image.u8(at + 2) };
  });
  const masked = image.u8(Events.MASKED);
  return {
    requests: commandsOf(image, CommandState.WAITING).map((slot) => image.cid(slot)),
    pending,
    masked: [0, 1, 2, 3, 4, 5, 6, 7].filter((type) => (masked & (1 << type)) !== 0),
  };
}

function health(image: ControllerImage): NvmeHealth {
  return {
    bytesRead: image.u64(HealthCounter.BYTES_READ),
    bytesWritten: image.u64(HealthCounter.BYTES_WRITTEN),
    readCommands: image.u64(HealthCounter.READ_COMMANDS),
    writeCommands: image.u64(HealthCounter.WRITE_COMMANDS),
    mediaErrors: image.u64(HealthCounter.MEDIA_ERRORS),
    errorCount: image.u64(HealthCounter.ERRORS),
    errors: readErrors(image).map(({ count, sqid, cid, status, lba, nsid }) => ({
      count,
      submissionQueue: sqid,
      commandId: cid,
      status,
      lba,
      namespace: nsid,
    })),
  };
}
